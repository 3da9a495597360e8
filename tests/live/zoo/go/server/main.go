// The standard library's HTTP server.  server PORT
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

func serve(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(r.URL.Path, "/")
	argument := ""
	if len(parts) > 2 {
		argument = parts[2]
	}
	number, _ := strconv.Atoi(argument)
	switch parts[1] {
	case "items":
		fmt.Fprintf(w, "{\"item\":%q}\n", argument)
	case "fail":
		http.Error(w, "failed", http.StatusInternalServerError)
	case "echo":
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Write(body)
	case "sleep":
		time.Sleep(time.Duration(number) * time.Millisecond)
		io.WriteString(w, "slept\n")
	case "big":
		w.Header().Set("Content-Length", argument)
		io.CopyN(w, xs{}, int64(number))
	case "stream":
		for piece := 0; piece < 5; piece++ {
			fmt.Fprintf(w, "piece %d\n", piece)
			w.(http.Flusher).Flush()
			time.Sleep(time.Millisecond)
		}
	default:
		http.Error(w, "no such page", http.StatusNotFound)
	}
}

// xs is an endless row of the letter x.
type xs struct{}

func (xs) Read(into []byte) (int, error) {
	for i := range into {
		into[i] = 'x'
	}
	return len(into), nil
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening", listener.Addr().(*net.TCPAddr).Port)
	if certificate := os.Getenv("ZOO_TLS_CERTIFICATE"); certificate != "" {
		server := http.Server{Handler: http.HandlerFunc(serve)}
		if os.Getenv("ZOO_HTTP2") == "" {
			server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
		}
		log.Fatal(server.ServeTLS(listener, certificate, os.Getenv("ZOO_TLS_KEY")))
	}
	server := http.Server{Handler: http.HandlerFunc(serve)}
	if os.Getenv("ZOO_HTTP2") != "" {
		allowHTTP2(&server)
	}
	log.Fatal(server.Serve(listener))
}
