// A client of databases, caches and names for the live tests: databases KIND PORT OUT [ROUNDS]
//
// Every operation is written to OUT as a line of JSON: what it was, when it began (CLOCK_MONOTONIC), how long it took by
// this program's own clock, and with which code it failed.
package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/lib/pq"
	"github.com/redis/go-redis/v9"
)

type operation struct {
	Op      string `json:"op"`
	StartNs int64  `json:"start_ns"`
	TookNs  int64  `json:"took_ns"`
	Code    string `json:"code"`
}

var out *bufio.Writer

func monotonic() int64 {
	var now syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&now)), 0)
	return now.Nano()
}

func code(err error) string {
	var pgx *pgconn.PgError
	var lib *pq.Error
	var my *mysql.MySQLError
	var name *net.DNSError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &pgx):
		return pgx.Code
	case errors.As(err, &lib):
		return string(lib.Code)
	case errors.As(err, &my):
		return strconv.Itoa(int(my.Number))
	case errors.As(err, &name) && name.IsNotFound:
		return "NXDOMAIN"
	}
	return err.Error()
}

func timed(op string, run func() error) {
	start := monotonic()
	err := run()
	line, _ := json.Marshal(operation{op, start, monotonic() - start, code(err)})
	out.Write(append(line, '\n'))
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func throughPgx(port string) {
	ctx := context.Background()
	connection, err := pgx.Connect(ctx, "postgres://postgres@127.0.0.1:"+port+"/postgres?sslmode=disable")
	must(err)
	defer connection.Close(ctx)
	exec := func(text string, arguments ...any) func() error {
		return func() error { _, err := connection.Exec(ctx, text, arguments...); return err }
	}
	statements(exec, func(n int) string { return "$" + strconv.Itoa(n) }, "SELECT pg_sleep(0.02)")
	timed("batch", func() error {
		batch := &pgx.Batch{}
		for n := 0; n < 20; n++ {
			batch.Queue("SELECT note FROM orders WHERE id = $1", n)
		}
		return connection.SendBatch(ctx, batch).Close()
	})
}

func throughSQL(driver, source, sleep string, mark func(int) string) {
	database, err := sql.Open(driver, source)
	must(err)
	defer database.Close()
	database.SetMaxOpenConns(1)
	exec := func(text string, arguments ...any) func() error {
		return func() error { _, err := database.Exec(text, arguments...); return err }
	}
	statements(exec, mark, sleep)
	prepared, err := database.Prepare("UPDATE orders SET note = " + mark(1) + " WHERE id = " + mark(2))
	must(err)
	for n := 0; n < 10; n++ {
		timed("update", func() error { _, err := prepared.Exec("go", n); return err })
	}
}

func statements(exec func(string, ...any) func() error, mark func(int) string, sleep string) {
	for n := 0; n < 30; n++ {
		timed("select", exec("SELECT note FROM orders WHERE id = "+mark(1), n))
	}
	for n := 0; n < 10; n++ {
		timed("insert", exec("INSERT INTO customers (id, name) VALUES ("+mark(1)+", "+mark(2)+")", n, "name"))
	}
	for n := 0; n < 5; n++ {
		timed("begin", exec("BEGIN"))
		timed("update", exec("UPDATE orders SET note = "+mark(1)+" WHERE id = "+mark(2), "note", n))
		timed("commit", exec("COMMIT"))
	}
	for n := 0; n < 3; n++ {
		timed("unique", exec("INSERT INTO customers (id, name) VALUES ("+mark(1)+", "+mark(2)+")", 1, "again"))
		timed("missing", exec("SELECT * FROM nowhere"))
		timed("syntax", exec("SELEC 1"))
		timed("sleep", exec(sleep))
	}
	timed("literal", exec("SELECT id FROM orders WHERE note = 'n7' AND id > 3"))
	timed("delete", exec("DELETE FROM customers"))
}

func throughRedis(port string) {
	ctx := context.Background()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + port, PoolSize: 1})
	defer client.Close()
	for n := 0; n < 200; n++ {
		key := "go:" + strconv.Itoa(n%7)
		timed("set", func() error { return client.Set(ctx, key, n, 0).Err() })
		timed("get", func() error { return client.Get(ctx, key).Err() })
		timed("lpush", func() error { return client.LPush(ctx, "list:"+key, n).Err() })
	}
	timed("wrong", func() error { return client.Incr(ctx, "list:go:1").Err() })
	timed("pipeline", func() error {
		_, err := client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for n := 0; n < 100; n++ {
				pipe.Incr(ctx, "counter")
			}
			return nil
		})
		return err
	})
}

func throughResolver(port string) {
	ctx := context.Background()
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, network, "127.0.0.1:"+port)
	}}
	for n := 0; n < 20; n++ {
		timed("A", func() error { _, err := resolver.LookupIP(ctx, "ip4", "a.example.test."); return err })
		timed("AAAA", func() error { _, err := resolver.LookupIP(ctx, "ip6", "a.example.test."); return err })
		timed("TXT", func() error { _, err := resolver.LookupTXT(ctx, "t.example.test."); return err })
		timed("A", func() error { _, err := resolver.LookupIP(ctx, "ip4", "missing.example.test."); return err })
	}
}

func main() {
	kind, port, path := os.Args[1], os.Args[2], os.Args[3]
	file, err := os.Create(path)
	must(err)
	out = bufio.NewWriter(file)
	time.Sleep(300 * time.Millisecond) // until it is watched
	question := func(int) string { return "?" }
	switch kind {
	case "pgx":
		throughPgx(port)
	case "pq":
		source := "host=127.0.0.1 port=" + port + " user=postgres dbname=postgres sslmode=disable"
		throughSQL("postgres", source, "SELECT pg_sleep(0.02)", func(n int) string { return "$" + strconv.Itoa(n) })
	case "mysql":
		throughSQL("mysql", "onlooker:onlooker@tcp(127.0.0.1:"+port+")/shop", "SELECT SLEEP(0.02)", question)
	case "redis":
		throughRedis(port)
	case "dns":
		throughResolver(port)
	}
	must(out.Flush())
}
