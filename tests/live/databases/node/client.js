// A client of databases, caches and names for the live tests: node client.js KIND PORT OUT
//
// Every operation is written to OUT as a line of JSON: what it was, when it began (CLOCK_MONOTONIC), how long it took by
// this program's own clock, and with which code it failed.  It uses one connection, and the workload of all languages.
'use strict';

const fs = require('node:fs');
const { createRequire } = require('node:module');
const load = createRequire(`${process.env.NODE_CLIENTS}/`);

const [kind, port, out] = process.argv.slice(2);
const rows = [];

async function timed(op, run) {
  const start = process.hrtime.bigint();
  let code = '';
  try {
    await run();
  } catch (error) {
    code = String(error.code === 'ENOTFOUND' ? 'NXDOMAIN' : error.errno > 0 ? error.errno : error.code ?? error.message.split(' ')[0]);
  }
  rows.push({ op, start_ns: Number(start), took_ns: Number(process.hrtime.bigint() - start), code });
}

async function statements(query, mark, sleep) {
  for (let n = 0; n < 30; n++) await timed('select', () => query(`SELECT note FROM orders WHERE id = ${mark(1)}`, [n]));
  const insert = `INSERT INTO customers (id, name) VALUES (${mark(1)}, ${mark(2)})`;
  for (let n = 0; n < 10; n++) await timed('insert', () => query(insert, [n, 'name']));
  for (let n = 0; n < 5; n++) {
    await timed('begin', () => query('BEGIN'));
    await timed('update', () => query(`UPDATE orders SET note = ${mark(1)} WHERE id = ${mark(2)}`, ['note', n]));
    await timed('commit', () => query('COMMIT'));
  }
  for (let n = 0; n < 3; n++) {
    await timed('unique', () => query(insert, [1, 'again']));
    await timed('missing', () => query('SELECT * FROM nowhere'));
    await timed('syntax', () => query('SELEC 1'));
    await timed('sleep', () => query(sleep));
  }
  await timed('literal', () => query("SELECT id FROM orders WHERE note = 'n7' AND id > 3"));
  await timed('delete', () => query('DELETE FROM customers'));
}

const clients = {
  async pg() {
    const { Client } = load('pg');
    const client = new Client({ host: '127.0.0.1', port: Number(port), user: 'postgres', database: 'postgres' });
    await client.connect();
    await statements((text, values) => client.query(text, values), (n) => `$${n}`, 'SELECT pg_sleep(0.02)');
    for (let n = 0; n < 10; n++) {
      await timed('named', () => client.query({ name: 'by-id', text: 'SELECT id FROM orders WHERE id = $1', values: [n] }));
    }
    await client.end();
  },
  async mysql2() {
    const mysql = load('mysql2/promise');
    const settings = { host: '127.0.0.1', port: Number(port), user: 'onlooker', password: 'onlooker', database: 'shop' };
    const connection = await mysql.createConnection(settings);
    await statements((text, values) => connection.query(text, values), () => '?', 'SELECT SLEEP(0.02)');
    for (let n = 0; n < 10; n++) {
      await timed('prepared', () => connection.execute('SELECT id FROM orders WHERE id = ?', [n]));
    }
    await connection.end();
  },
  async ioredis() {
    const Redis = load('ioredis');
    const client = new Redis(Number(port), '127.0.0.1');
    for (let n = 0; n < 200; n++) {
      await timed('set', () => client.set(`node:${n % 7}`, n));
      await timed('get', () => client.get(`node:${n % 7}`));
      await timed('lpush', () => client.lpush(`list:${n % 7}`, n));
    }
    await timed('wrong', () => client.incr('list:1'));
    const pipeline = client.pipeline();
    for (let n = 0; n < 100; n++) pipeline.incr('counter');
    await timed('pipeline', () => pipeline.exec());
    await client.quit();
  },
  async dns() {
    const { Resolver } = require('node:dns').promises;
    const resolver = new Resolver();
    resolver.setServers([`127.0.0.1:${port}`]);
    for (let n = 0; n < 20; n++) {
      await timed('A', () => resolver.resolve4('a.example.test'));
      await timed('AAAA', () => resolver.resolve6('a.example.test'));
      await timed('TXT', () => resolver.resolveTxt('t.example.test'));
      await timed('A', () => resolver.resolve4('missing.example.test'));
    }
  },
};

setTimeout(async () => {
  await clients[kind]();
  fs.writeFileSync(out, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  process.exit(0);
}, 300); // until it is watched
