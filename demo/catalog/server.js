// The catalog: products by number, in plain node:http.
'use strict';

const http = require('node:http');

const nouns = ['lamp', 'chair', 'table', 'shelf', 'clock', 'vase', 'rug', 'mirror'];
const items = Array.from({ length: 200 }, (_, i) => ({
  number: i + 1,
  name: `${nouns[i % nouns.length]} ${i + 1}`,
  category: nouns[i % nouns.length],
}));

const server = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://catalog');
  const answer = (status, body) => {
    response.writeHead(status, { 'content-type': 'application/json' });
    response.end(JSON.stringify(body));
  };
  if (url.pathname === '/items') {
    const category = url.searchParams.get('category');
    const limit = Number(url.searchParams.get('limit')) || 10;
    // what a query of a database would take
    setTimeout(() => answer(200, items.filter((item) => !category || item.category === category).slice(0, limit)), 4);
    return;
  }
  const number = /^\/items\/(\d+)$/.exec(url.pathname)?.[1];
  const item = number && items[Number(number) - 1];
  if (item) answer(200, item);
  else answer(404, { error: 'no such item' });
});

server.keepAliveTimeout = 60_000;
server.listen(Number(process.env.PORT), '127.0.0.1');
