//go:build go1.24

package main

import "net/http"

// onlyHTTP2 makes a client speak HTTP/2, with TLS and without.
func onlyHTTP2(transport *http.Transport) {
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP2(true)
	transport.Protocols.SetUnencryptedHTTP2(true)
}
