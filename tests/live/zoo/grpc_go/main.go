// gRPC without generated code.  server PORT, or client PORT PLAN CONCURRENCY
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// raw passes bytes as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(data)
	return nil
}
func (raw) Name() string { return "proto" }

type wish struct {
	status    codes.Code
	responses int
	message   []byte
	delay     time.Duration
}

func wishOf(ctx context.Context) wish {
	said, _ := metadata.FromIncomingContext(ctx)
	number := func(name string, otherwise int) int {
		if values := said.Get(name); len(values) > 0 {
			otherwise, _ = strconv.Atoi(values[0])
		}
		return otherwise
	}
	return wish{
		codes.Code(number("zoo-status", 0)), number("zoo-responses", 1),
		bytes.Repeat([]byte("a"), number("zoo-bytes", 10)), time.Duration(number("zoo-delay-ms", 0)) * time.Millisecond,
	}
}

func (w wish) finish() error {
	time.Sleep(w.delay)
	if w.status != codes.OK {
		return status.Error(w.status, "as asked")
	}
	return nil
}

func serve(_ any, stream grpc.ServerStream) error {
	w := wishOf(stream.Context())
	name, _ := grpc.MethodFromServerStream(stream)
	var message []byte
	switch name[strings.LastIndex(name, "/")+1:] {
	case "Collect":
		for stream.RecvMsg(&message) == nil {
		}
	case "Listen":
		if err := stream.RecvMsg(&message); err != nil {
			return err
		}
		for range w.responses {
			if err := stream.SendMsg(&w.message); err != nil {
				return err
			}
		}
		return w.finish()
	case "Talk":
		for stream.RecvMsg(&message) == nil {
			if err := stream.SendMsg(&w.message); err != nil {
				return err
			}
		}
		return w.finish()
	default:
		if err := stream.RecvMsg(&message); err != nil {
			return err
		}
	}
	if err := w.finish(); err != nil {
		return err
	}
	return stream.SendMsg(&w.message)
}

func runServer(port string) {
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		log.Fatal(err)
	}
	var options []grpc.ServerOption
	if certificate := os.Getenv("ZOO_TLS_CERTIFICATE"); certificate != "" {
		secret, err := credentials.NewServerTLSFromFile(certificate, os.Getenv("ZOO_TLS_KEY"))
		if err != nil {
			log.Fatal(err)
		}
		options = append(options, grpc.Creds(secret))
	}
	server := grpc.NewServer(options...)
	streams := []grpc.StreamDesc{}
	for _, name := range []string{"Unary", "Collect", "Listen", "Talk"} {
		streams = append(streams, grpc.StreamDesc{StreamName: name, Handler: serve, ServerStreams: true, ClientStreams: true})
	}
	server.RegisterService(&grpc.ServiceDesc{ServiceName: "zoo.Zoo", HandlerType: (*any)(nil), Streams: streams}, struct{}{})
	log.Fatal(server.Serve(listener))
}

// monotonic is CLOCK_MONOTONIC in ns.
func monotonic() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		log.Fatal(err)
	}
	return now.Nano()
}

type call struct {
	n, requests      int
	kind             string
	context          metadata.MD
	message          []byte
	deadline, cancel time.Duration
}

func plan(path string) (calls []call) {
	file, err := os.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		w := strings.Fields(lines.Text())
		at := func(i int) int { number, _ := strconv.Atoi(w[i]); return number }
		ms := func(i int) time.Duration { return time.Duration(at(i)) * time.Millisecond }
		calls = append(calls, call{
			at(0), at(4), w[1],
			metadata.Pairs("traceparent", w[2], "zoo-status", w[3], "zoo-responses", w[5], "zoo-bytes", w[6], "zoo-delay-ms", w[7]),
			bytes.Repeat([]byte("q"), at(6)), ms(8), ms(9),
		})
	}
	return calls
}

func (c call) carryOut(channel *grpc.ClientConn) (responses int, err error) {
	ctx, stop := metadata.NewOutgoingContext(context.Background(), c.context), context.CancelFunc(func() {})
	if c.deadline > 0 {
		ctx, stop = context.WithTimeout(ctx, c.deadline)
	}
	defer stop()
	if c.cancel > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		timer := time.AfterFunc(c.cancel, cancel)
		defer timer.Stop()
	}
	path := "/zoo.Zoo/" + c.kind
	var answer []byte
	if c.kind == "Unary" || c.kind == "Nowhere" {
		err = channel.Invoke(ctx, path, &c.message, &answer)
		if err == nil {
			responses = 1
		}
		return responses, err
	}
	stream, err := channel.NewStream(ctx, &grpc.StreamDesc{ClientStreams: c.kind != "Listen", ServerStreams: c.kind != "Collect"}, path)
	if err != nil {
		return 0, err
	}
	for range c.requests {
		if err := stream.SendMsg(&c.message); err != nil {
			break // the answer says why
		}
	}
	stream.CloseSend()
	for {
		if err := stream.RecvMsg(&answer); err == io.EOF {
			return responses, nil
		} else if err != nil {
			return responses, err
		}
		responses++
		if c.kind == "Collect" {
			return responses, nil
		}
	}
}

func statusName(err error) string {
	names := []string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
		"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
		"INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}
	return names[status.Code(err)]
}

func runClient(port, planned string, concurrency int) {
	secret := insecure.NewCredentials()
	if ca := os.Getenv("ZOO_TLS_CA"); ca != "" {
		text, _ := os.ReadFile(ca)
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(text)
		secret = credentials.NewTLS(&tls.Config{RootCAs: pool})
	}
	channel, err := grpc.NewClient("127.0.0.1:"+port, grpc.WithTransportCredentials(secret))
	if err != nil {
		log.Fatal(err)
	}
	calls := plan(planned)
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	var group sync.WaitGroup
	var lock sync.Mutex
	var lines []map[string]any
	for first := range concurrency {
		group.Add(1)
		go func() {
			defer group.Done()
			for i := first; i < len(calls); i += concurrency {
				start := monotonic()
				responses, err := calls[i].carryOut(channel)
				end := monotonic()
				lock.Lock()
				lines = append(lines, map[string]any{"n": calls[i].n, "status": statusName(err), "start_ns": start, "end_ns": end, "responses": responses})
				lock.Unlock()
			}
		}()
	}
	group.Wait()
	channel.Close()
	out := json.NewEncoder(os.Stdout)
	for _, line := range lines {
		out.Encode(line)
	}
}

func main() {
	encoding.RegisterCodec(raw{})
	if os.Args[1] == "server" {
		runServer(os.Args[2])
	}
	concurrency, _ := strconv.Atoi(os.Args[4])
	runClient(os.Args[2], os.Args[3], concurrency)
}
