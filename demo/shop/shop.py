"""The shop: a Flask application.

It asks the catalog for products and pricing for prices, keeps stock and orders in PostgreSQL, and carts and what is
asked for often in Redis.
"""

import json
import os

import psycopg
import redis
import requests
from flask import Flask, abort, jsonify, request
from psycopg_pool import ConnectionPool

CATALOG = os.environ["CATALOG_URL"]
PRICING = os.environ["PRICING_URL"]
REMEMBER_S = 5

app = Flask(__name__)
backends = requests.Session()  # keeps its connections
cache = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)
database = ConnectionPool(os.environ["DATABASE_URL"], min_size=1, max_size=4, open=True)


def ask(url, **parameters):
    """What a backend answers; its 404 is ours, any other failure is a 502."""
    answer = backends.get(url, params=parameters, timeout=5)
    if answer.status_code == 404:
        abort(404)
    if not answer.ok:
        abort(502)
    return answer.json()


def rows(statement, *parameters):
    """What the database answers."""
    with database.connection() as connection:
        return connection.execute(statement, parameters).fetchall()


@app.get("/")
def home():
    popular = cache.zrevrange("looked-at", 0, 2)
    return jsonify(welcome="the demo shop", popular=popular, offers=ask(f"{CATALOG}/items", limit=3))


@app.get("/products")
def products():
    items = ask(f"{CATALOG}/items", category=request.args.get("category", ""), limit=20)
    pieces = dict(rows("SELECT number, pieces FROM stock WHERE number = ANY(%s)", [item["number"] for item in items]))
    return jsonify([item | {"pieces": pieces.get(item["number"], 0)} for item in items])


@app.get("/products/<int:number>")
def product(number):
    known = cache.get(f"product:{number}")
    if known is None:
        item = ask(f"{CATALOG}/items/{number}")
        known = json.dumps(item | ask(f"{PRICING}/quote", item=number, quantity=1))
        cache.set(f"product:{number}", known, ex=REMEMBER_S)
    cache.zincrby("looked-at", 1, number)
    return jsonify(json.loads(known))


@app.post("/cart/<int:cart>/items")
def put_into_cart(cart):
    wanted = request.get_json()
    item = ask(f"{CATALOG}/items/{wanted['item']}")
    with cache.pipeline() as commands:
        commands.hincrby(f"cart:{cart}", wanted["item"], wanted["quantity"])
        commands.expire(f"cart:{cart}", 600)
        commands.execute()
    return jsonify(cart=cart, item=item["name"]), 201


@app.post("/orders")
def order():
    wanted = request.get_json()
    items = wanted["items"]
    total = sum(ask(f"{PRICING}/quote", item=one["item"], quantity=one["quantity"])["total"] for one in items)
    try:
        with database.connection() as connection:  # a transaction
            connection.execute("INSERT INTO orders (id, total) VALUES (%s, %s)", (wanted["cart"], total))
            for one in items:
                line = (wanted["cart"], one["item"], one["quantity"])
                connection.execute("INSERT INTO order_lines (order_id, number, quantity) VALUES (%s, %s, %s)", line)
                taken = (one["quantity"], one["item"])
                connection.execute("UPDATE stock SET pieces = pieces - %s WHERE number = %s", taken)
    except psycopg.errors.UniqueViolation:
        abort(409)  # ordered already
    cache.delete(f"cart:{wanted['cart']}")
    return jsonify(order=wanted["cart"], total=total), 201


@app.get("/reports/sales")
def sales():
    # some report takes its time in every shop
    sold = rows(
        "SELECT category, sum(quantity), pg_sleep(0.04 + random() * 0.06) FROM order_lines JOIN stock USING (number)"
        " GROUP BY category"
    )
    return jsonify(sales={category: pieces for category, pieces, _ in sold})


@app.get("/healthz")
def health():
    return "ok\n"
