"""The shop: a Flask application that asks the catalog for products and pricing for prices."""

import os
import time

import requests
from flask import Flask, abort, jsonify, request

CATALOG = os.environ["CATALOG_URL"]
PRICING = os.environ["PRICING_URL"]

app = Flask(__name__)
backends = requests.Session()  # keeps its connections


def ask(url, **parameters):
    """What a backend answers; its 404 is ours, any other failure is a 502."""
    answer = backends.get(url, params=parameters, timeout=5)
    if answer.status_code == 404:
        abort(404)
    if not answer.ok:
        abort(502)
    return answer.json()


@app.get("/")
def home():
    return jsonify(welcome="the demo shop", offers=ask(f"{CATALOG}/items", limit=3))


@app.get("/products")
def products():
    return jsonify(ask(f"{CATALOG}/items", category=request.args.get("category", ""), limit=20))


@app.get("/products/<int:number>")
def product(number):
    item = ask(f"{CATALOG}/items/{number}")
    return jsonify(item | ask(f"{PRICING}/quote", item=number, quantity=1))


@app.post("/cart/<int:cart>/items")
def put_into_cart(cart):
    wanted = request.get_json()
    item = ask(f"{CATALOG}/items/{wanted['item']}")
    return jsonify(cart=cart, item=item["name"]), 201


@app.post("/orders")
def order():
    wanted = request.get_json()
    prices = [ask(f"{PRICING}/quote", item=one["item"], quantity=one["quantity"])["total"] for one in wanted["items"]]
    return jsonify(order=wanted["cart"], total=sum(prices)), 201


@app.get("/reports/sales")
def sales():
    time.sleep(0.3 + (time.time_ns() % 500) / 1000)  # some report takes its time in every shop
    return jsonify(sales=[ask(f"{PRICING}/quote", item=number, quantity=10)["total"] for number in range(1, 6)])


@app.get("/healthz")
def health():
    return "ok\n"
