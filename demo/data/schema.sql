-- What the shop keeps.  Read by PostgreSQL in single-user mode: a statement ends with a semicolon and an empty line.

CREATE ROLE shop LOGIN PASSWORD 'shop';

CREATE TABLE stock (
	number integer PRIMARY KEY,
	category text NOT NULL,
	pieces integer NOT NULL
);

CREATE TABLE orders (
	id bigint PRIMARY KEY,
	total integer NOT NULL,
	placed timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE order_lines (
	order_id bigint NOT NULL REFERENCES orders,
	number integer NOT NULL REFERENCES stock,
	quantity integer NOT NULL
);

INSERT INTO stock
SELECT n, (ARRAY['lamp', 'chair', 'table', 'shelf', 'clock', 'vase', 'rug', 'mirror'])[(n - 1) % 8 + 1], 500 + n
FROM generate_series(1, 200) AS n;

-- Numbers that no visitor uses: theirs have five digits.
INSERT INTO orders SELECT n, 10 + n % 90, now() - n * interval '1 minute' FROM generate_series(1, 2000) AS n;

INSERT INTO order_lines SELECT n, n * 7 % 200 + 1, n % 3 + 1 FROM generate_series(1, 2000) AS n;

CREATE INDEX ON order_lines (number);

GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO shop;

