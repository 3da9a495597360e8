/* A blocking HTTP/1.1 server, one thread a connection: what a plain C program does.  server PORT */
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
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifdef WITH_GNUTLS
#include <gnutls/gnutls.h>

static gnutls_certificate_credentials_t credentials;
static __thread gnutls_session_t session; /* a thread has one connection */

static ssize_t receive(int fd, void *to, size_t size)
{
	ssize_t got;

	do {
		got = gnutls_record_recv(session, to, size);
	} while (got == GNUTLS_E_AGAIN || got == GNUTLS_E_INTERRUPTED || got == GNUTLS_E_REHANDSHAKE);
	return got;
}

/* One piece a call, as programs do that have no vectors to give. */
static ssize_t transmit(int fd, struct iovec *parts, int count)
{
	return gnutls_record_send(session, parts->iov_base, parts->iov_len);
}

static int hello(int fd)
{
	int result;

	gnutls_init(&session, GNUTLS_SERVER);
	gnutls_set_default_priority(session);
	gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
	gnutls_transport_set_int(session, fd);
	do {
		result = gnutls_handshake(session);
	} while (result < 0 && !gnutls_error_is_fatal(result));
	return result == 0;
}

static void goodbye(void)
{
	gnutls_bye(session, GNUTLS_SHUT_WR);
	gnutls_deinit(session);
}

static int prepare(void)
{
	gnutls_global_init();
	gnutls_certificate_allocate_credentials(&credentials);
	return gnutls_certificate_set_x509_key_file(credentials, getenv("ZOO_TLS_CERTIFICATE"), getenv("ZOO_TLS_KEY"),
						    GNUTLS_X509_FMT_PEM) >= 0;
}
#else
#define receive(fd, to, size) recv(fd, to, size, 0)
#define transmit writev
#define hello(fd) 1
#define goodbye() (void)0
#define prepare() 1
#endif

#define HEAD_MAX 65536

struct reader {
	int fd;
	size_t start, end;
	char buffer[HEAD_MAX];
};

static int fill(struct reader *in)
{
	if (in->start && in->start == in->end)
		in->start = in->end = 0;
	if (in->end == HEAD_MAX) {
		memmove(in->buffer, in->buffer + in->start, in->end - in->start);
		in->end -= in->start;
		in->start = 0;
		if (in->end == HEAD_MAX)
			return 0; /* a head that does not fit */
	}
	ssize_t got = receive(in->fd, in->buffer + in->end, HEAD_MAX - in->end);
	if (got <= 0)
		return 0;
	in->end += got;
	return 1;
}

/* The next line without its CRLF, or NULL.  Valid until the next call that reads. */
static char *line(struct reader *in)
{
	for (;;) {
		char *at = memchr(in->buffer + in->start, '\n', in->end - in->start);
		if (at) {
			char *text = in->buffer + in->start;
			in->start = at + 1 - in->buffer;
			*at = 0;
			if (at > text && at[-1] == '\r')
				at[-1] = 0;
			return text;
		}
		if (!fill(in))
			return NULL;
	}
}

static int take(struct reader *in, size_t want, char **body, size_t *length)
{
	*body = realloc(*body, *length + want + 1);
	while (want) {
		if (in->start == in->end && !fill(in))
			return 0;
		size_t part = in->end - in->start < want ? in->end - in->start : want;
		memcpy(*body + *length, in->buffer + in->start, part);
		in->start += part;
		*length += part;
		want -= part;
	}
	return 1;
}

static int send_all(int fd, struct iovec *parts, int count)
{
	while (count) {
		ssize_t sent = transmit(fd, parts, count);
		if (sent <= 0)
			return 0;
		while (count && (size_t)sent >= parts->iov_len) {
			sent -= parts->iov_len;
			parts++;
			count--;
		}
		if (count) {
			parts->iov_base = (char *)parts->iov_base + sent;
			parts->iov_len -= sent;
		}
	}
	return 1;
}

static int respond(int fd, int status, const char *reason, const char *body, size_t length, int close_after)
{
	char head[256];
	int size = snprintf(head, sizeof(head), "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n%s\r\n",
			    status, reason, length, close_after ? "Connection: close\r\n" : "");
	struct iovec parts[2] = {{head, size}, {(char *)body, length}};
	return send_all(fd, parts, length ? 2 : 1);
}

static int respond_in_pieces(int fd)
{
	static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";
	struct iovec first = {(char *)head, sizeof(head) - 1};
	if (!send_all(fd, &first, 1))
		return 0;
	for (int piece = 0; piece < 5; piece++) {
		char chunk[64], text[32];
		int length = snprintf(text, sizeof(text), "piece %d\n", piece);
		int size = snprintf(chunk, sizeof(chunk), "%x\r\n%s\r\n", length, text);
		struct iovec part = {chunk, size};
		if (!send_all(fd, &part, 1))
			return 0;
		usleep(1000);
	}
	struct iovec last = {(char *)"0\r\n\r\n", 5};
	return send_all(fd, &last, 1);
}

static int serve_one(struct reader *in)
{
	char method[16], target[4096], *text = line(in);
	if (!text || sscanf(text, "%15s %4095s", method, target) != 2)
		return 0;
	size_t content_length = 0, length = 0;
	int chunked = 0, close_after = strstr(text, "HTTP/1.0") != NULL, expects = 0;
	while ((text = line(in)) && *text) {
		if (!strncasecmp(text, "content-length:", 15))
			content_length = strtoul(text + 15, NULL, 10);
		else if (!strncasecmp(text, "transfer-encoding:", 18))
			chunked = strcasestr(text, "chunked") != NULL;
		else if (!strncasecmp(text, "connection:", 11))
			close_after |= strcasestr(text, "close") != NULL;
		else if (!strncasecmp(text, "expect:", 7))
			expects = 1;
	}
	if (!text)
		return 0;
	struct iovec go_on = {(char *)"HTTP/1.1 100 Continue\r\n\r\n", 25};
	if (expects && !send_all(in->fd, &go_on, 1))
		return 0;
	char *body = NULL;
	int alive = 1;
	if (chunked) {
		size_t size;
		do {
			text = line(in);
			size = text ? strtoul(text, NULL, 16) : 0;
			alive = text && (!size || (take(in, size, &body, &length) && line(in)));
		} while (alive && size);
		while (alive && (text = line(in)) && *text)
			;
		alive = alive && text;
	} else if (content_length) {
		alive = take(in, content_length, &body, &length);
	}
	if (!alive) {
		free(body);
		return 0;
	}
	if (!strncmp(target, "/items/", 7)) {
		char item[4200];
		int size = snprintf(item, sizeof(item), "{\"item\":\"%s\"}\n", target + 7);
		alive = respond(in->fd, 200, "OK", item, size, close_after);
	} else if (!strncmp(target, "/fail", 5)) {
		alive = respond(in->fd, 500, "Internal Server Error", "failed\n", 7, close_after);
	} else if (!strncmp(target, "/echo", 5)) {
		alive = respond(in->fd, 200, "OK", body ? body : "", length, close_after);
	} else if (!strncmp(target, "/sleep/", 7)) {
		usleep(strtoul(target + 7, NULL, 10) * 1000);
		alive = respond(in->fd, 200, "OK", "slept\n", 6, close_after);
	} else if (!strncmp(target, "/big/", 5)) {
		size_t size = strtoul(target + 5, NULL, 10);
		char *big = malloc(size + 1);
		memset(big, 'x', size);
		alive = respond(in->fd, 200, "OK", big, size, close_after);
		free(big);
	} else if (!strncmp(target, "/stream", 7)) {
		alive = respond_in_pieces(in->fd);
	} else {
		alive = respond(in->fd, 404, "Not Found", "no such page\n", 13, close_after);
	}
	free(body);
	return alive && !close_after;
}

static void *serve(void *argument)
{
	struct reader *in = argument;
	if (hello(in->fd))
		while (serve_one(in))
			;
	goodbye();
	close(in->fd);
	free(in);
	return NULL;
}

int main(int argc, char **argv)
{
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0)};
	socklen_t size = sizeof(address);
	pthread_attr_t attributes;

	signal(SIGPIPE, SIG_IGN);
	if (!prepare())
		return 1;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 512)) {
		perror("cannot listen");
		return 1;
	}
	getsockname(listener, (struct sockaddr *)&address, &size);
	printf("listening %d\n", ntohs(address.sin_port));
	fflush(stdout);
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	for (;;) {
		pthread_t thread;
		int fd = accept(listener, NULL, NULL);
		if (fd < 0)
			continue;
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		struct reader *in = malloc(sizeof(*in));
		in->fd = fd;
		in->start = in->end = 0;
		if (pthread_create(&thread, &attributes, serve, in)) {
			close(fd);
			free(in);
		}
	}
}
