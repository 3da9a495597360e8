// The standard library's HTTP client.  client PORT PLAN keepalive|fresh CONNECTIONS
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"
)

type planned struct {
	n, bodyBytes int
	method, path string
	chunked      bool
}

type truth struct {
	N       int    `json:"n"`
	Method  string `json:"method"`
	Path    string `json:"path"`
	Status  int    `json:"status"`
	StartNs int64  `json:"start_ns"`
	EndNs   int64  `json:"end_ns"`
	Bytes   int    `json:"bytes"`
	Error   string `json:"error"`
}

// monotonicNs asks for CLOCK_MONOTONIC itself: time.Time does not give its reading away.
func monotonicNs() int64 {
	var now syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&now)), 0)
	return now.Nano()
}

func readPlan(name string) (plan []planned) {
	text, err := os.ReadFile(name)
	if err != nil {
		log.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		parts := strings.Split(line, "\t")
		n, _ := strconv.Atoi(parts[0])
		bodyBytes, _ := strconv.Atoi(parts[3])
		plan = append(plan, planned{n, bodyBytes, parts[1], parts[2], parts[4] == "1"})
	}
	return plan
}

func exchange(client *http.Client, base string, p planned) (status, count int, err error) {
	var body io.Reader
	if p.method == http.MethodPost {
		body = bytes.NewReader(bytes.Repeat([]byte("x"), p.bodyBytes))
		if p.chunked {
			body = io.MultiReader(body) // of no known length
		}
	}
	request, err := http.NewRequest(p.method, base+p.path, body)
	if err != nil {
		return 0, 0, err
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, 0, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, len(content), err
}

func main() {
	base := "http://127.0.0.1:" + os.Args[1]
	if os.Getenv("ZOO_TLS_CA") != "" { // SSL_CERT_FILE tells crypto/x509 the same
		base = "https://127.0.0.1:" + os.Args[1]
	}
	plan := readPlan(os.Args[2])
	connections, _ := strconv.Atoi(os.Args[4])
	transport := &http.Transport{
		DisableKeepAlives: os.Args[3] == "fresh", MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections,
	}
	if os.Getenv("ZOO_HTTP2") != "" { // one connection for all
		transport.MaxConnsPerHost = 0
		onlyHTTP2(transport)
	}
	client := &http.Client{Transport: transport}
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')

	results := make([]truth, len(plan))
	var group sync.WaitGroup
	for first := 0; first < connections; first++ {
		group.Add(1)
		go func(first int) {
			defer group.Done()
			for at := first; at < len(plan); at += connections {
				p := plan[at]
				result := truth{N: p.n, Method: p.method, Path: p.path, StartNs: monotonicNs()}
				var err error
				result.Status, result.Bytes, err = exchange(client, base, p)
				result.EndNs = monotonicNs()
				if err != nil {
					result.Error = err.Error()
				}
				results[at] = result
			}
		}(first)
	}
	group.Wait()
	out := json.NewEncoder(os.Stdout)
	for _, result := range results {
		out.Encode(result)
	}
}
