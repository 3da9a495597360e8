/*
 * A raw HTTP/1.1 client whose own cost a request is a few microseconds: the stop-watch of the server tests.
 * client PORT PLAN keepalive|fresh CONNECTIONS
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct planned {
	long n;
	char method[16], path[512];
	size_t body_bytes;
	int chunked;
	/* the truth */
	int status, local_port;
	const char *error;
	long long start_ns, end_ns;
	size_t bytes;
};

static struct planned *plan;
static long planned_count;
static int port, fresh, workers;

struct connection {
	int fd;
	size_t start, end;
	char buffer[65536];
};

static long long now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int dial(struct connection *link, int *local_port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	socklen_t size = sizeof(address);
	int on = 1;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	link->start = link->end = 0;
	link->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(link->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (connect(link->fd, (struct sockaddr *)&address, size)) {
		close(link->fd);
		link->fd = -1;
		return 0;
	}
	getsockname(link->fd, (struct sockaddr *)&address, &size);
	*local_port = ntohs(address.sin_port);
	return 1;
}

static int fill(struct connection *link)
{
	if (link->start == link->end)
		link->start = link->end = 0;
	if (link->end == sizeof(link->buffer))
		return 0;
	ssize_t got = recv(link->fd, link->buffer + link->end, sizeof(link->buffer) - link->end, 0);
	if (got <= 0)
		return 0;
	link->end += got;
	return 1;
}

static char *line(struct connection *link)
{
	for (;;) {
		char *text = link->buffer + link->start;
		char *at = memchr(text, '\n', link->end - link->start);
		if (at) {
			link->start = at + 1 - link->buffer;
			*at = 0;
			if (at > text && at[-1] == '\r')
				at[-1] = 0;
			return text;
		}
		if (link->start) {
			memmove(link->buffer, text, link->end - link->start);
			link->end -= link->start;
			link->start = 0;
		}
		if (!fill(link))
			return NULL;
	}
}

static int skip(struct connection *link, size_t count, size_t *bytes)
{
	while (count) {
		if (link->start == link->end && !fill(link))
			return 0;
		size_t part = link->end - link->start < count ? link->end - link->start : count;
		link->start += part;
		count -= part;
		*bytes += part;
	}
	return 1;
}

static const char *exchange(struct connection *link, struct planned *request, int *reusable)
{
	char *message = malloc(1024 + request->body_bytes + 64);
	int head = sprintf(message, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s", request->method, request->path, port,
			   fresh ? "Connection: close\r\n" : "");
	size_t length = head;

	if (request->chunked)
		length += sprintf(message + length, "Transfer-Encoding: chunked\r\n\r\n%zx\r\n", request->body_bytes);
	else if (request->body_bytes || !strcmp(request->method, "POST"))
		length += sprintf(message + length, "Content-Length: %zu\r\n\r\n", request->body_bytes);
	else
		length += sprintf(message + length, "\r\n");
	memset(message + length, 'x', request->body_bytes);
	length += request->body_bytes;
	if (request->chunked)
		length += sprintf(message + length, "\r\n0\r\n\r\n");
	for (size_t sent = 0; sent < length;) {
		ssize_t part = send(link->fd, message + sent, length - sent, MSG_NOSIGNAL);
		if (part <= 0) {
			free(message);
			return "send failed";
		}
		sent += part;
	}
	free(message);

	size_t content_length = 0;
	int chunked = 0, to_close = 1, status;
	char *text = line(link);
	if (!text || sscanf(text, "HTTP/1.%*d %d", &status) != 1)
		return "no response";
	*reusable = strncmp(text, "HTTP/1.1", 8) == 0;
	while ((text = line(link)) && *text) {
		if (!strncasecmp(text, "content-length:", 15)) {
			content_length = strtoul(text + 15, NULL, 10);
			to_close = 0;
		} else if (!strncasecmp(text, "transfer-encoding:", 18)) {
			chunked = 1;
			to_close = 0;
		} else if (!strncasecmp(text, "connection:", 11) && strcasestr(text, "close")) {
			*reusable = 0;
		}
	}
	if (!text)
		return "the response's head broke off";
	request->status = status;
	if (chunked) {
		size_t size;
		do {
			text = line(link);
			if (!text)
				return "a chunk broke off";
			size = strtoul(text, NULL, 16);
			if (size && (!skip(link, size, &request->bytes) || !line(link)))
				return "a chunk broke off";
		} while (size);
		while ((text = line(link)) && *text)
			;
		if (!text)
			return "the trailer broke off";
	} else if (to_close) {
		*reusable = 0;
		while (link->start < link->end || fill(link)) {
			request->bytes += link->end - link->start;
			link->start = link->end;
		}
	} else if (!skip(link, content_length, &request->bytes)) {
		return "the response's body broke off";
	}
	return NULL;
}

static void *work(void *argument)
{
	struct connection *link = malloc(sizeof(*link));
	int local_port = 0;

	link->fd = -1;
	for (long at = (long)argument; at < planned_count; at += workers) {
		struct planned *request = &plan[at];
		int reusable = 0;
		if (link->fd < 0 && !dial(link, &local_port)) {
			request->start_ns = now_ns();
			request->error = "connect failed";
		} else {
			request->start_ns = now_ns(); /* the exchange alone: the hand-shake is no part of a request */
			request->local_port = local_port;
			request->error = exchange(link, request, &reusable);
		}
		request->end_ns = now_ns();
		if (link->fd >= 0 && (fresh || !reusable || request->error)) {
			close(link->fd);
			link->fd = -1;
		}
	}
	if (link->fd >= 0)
		close(link->fd);
	free(link);
	return NULL;
}

int main(int argc, char **argv)
{
	char text[1024];
	FILE *file;
	pthread_t threads[256];

	if (argc != 5 || !(file = fopen(argv[2], "r"))) {
		fprintf(stderr, "usage: client PORT PLAN keepalive|fresh CONNECTIONS\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	port = atoi(argv[1]);
	fresh = !strcmp(argv[3], "fresh");
	workers = atoi(argv[4]);
	if (workers < 1 || workers > 256)
		return 2;
	while (fgets(text, sizeof(text), file)) {
		plan = realloc(plan, (planned_count + 1) * sizeof(*plan));
		struct planned *request = &plan[planned_count];
		memset(request, 0, sizeof(*request));
		if (sscanf(text, "%ld %15s %511s %zu %d", &request->n, request->method, request->path, &request->body_bytes,
			   &request->chunked) == 5)
			planned_count++;
	}
	fclose(file);
	puts("ready");
	fflush(stdout);
	if (!fgets(text, sizeof(text), stdin))
		return 1;
	for (long i = 0; i < workers; i++)
		pthread_create(&threads[i], NULL, work, (void *)i);
	for (int i = 0; i < workers; i++)
		pthread_join(threads[i], NULL);
	for (long i = 0; i < planned_count; i++) {
		struct planned *r = &plan[i];
		printf("{\"n\":%ld,\"method\":\"%s\",\"path\":\"%s\",\"status\":%d,\"start_ns\":%lld,\"end_ns\":%lld,"
		       "\"bytes\":%zu,\"local_port\":%d,\"error\":\"%s\"}\n",
		       r->n, r->method, r->path, r->status, r->start_ns, r->end_ns, r->bytes, r->local_port,
		       r->error ? r->error : "");
	}
	return 0;
}
