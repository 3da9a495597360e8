// The pricing service: what a number of items costs. One item of a hundred has no price, which is an error of its own.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strconv"
	"time"
)

func quote(w http.ResponseWriter, r *http.Request) {
	item, err := strconv.Atoi(r.URL.Query().Get("item"))
	if err != nil {
		http.Error(w, "item must be a number", http.StatusBadRequest)
		return
	}
	quantity, err := strconv.Atoi(r.URL.Query().Get("quantity"))
	if err != nil {
		quantity = 1
	}
	if item%100 == 13 {
		http.Error(w, "no price", http.StatusInternalServerError)
		return
	}
	time.Sleep(time.Duration(1+item%7) * time.Millisecond) // looks the discount up
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]int{"item": item, "total": quantity * (5 + item%37)})
}

func main() {
	http.HandleFunc("/quote", quote)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
