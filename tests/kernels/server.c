/*
 * A server that answers each request by another system call.  server tcp4|tcp6 PORT, or server unix PATH; prints "ready".
 *
 * The first part of the target names the way of sending: /writev/7 is answered by writev.  The ways of receiving take
 * turns.  One thread a connection, blocking but for /short: a body that the socket takes in pieces, as event loops send.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum { BIG = 400 * 1000, ROOM = 64 * 1024 };
static char big[BIG];
static int file;

static ssize_t receive(int fd, char *to, size_t size, unsigned turn)
{
	struct iovec parts[2] = {{to, 16}, {to + 16, size - 16}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

	switch (turn % 5) {
	case 0:
		return read(fd, to, size);
	case 1:
		return recv(fd, to, size, 0);
	case 2:
		return readv(fd, parts, 2);
	case 3:
		return recvmsg(fd, &message, 0);
	default:
		if (recv(fd, to, size, MSG_PEEK) <= 0)
			return 0;
		return recv(fd, to, size, 0);
	}
}

static void all(int fd, const char *from, size_t size)
{
	while (size) {
		ssize_t n = write(fd, from, size);

		if (n < 0 && errno == EAGAIN) {
			struct pollfd wait = {.fd = fd, .events = POLLOUT};

			poll(&wait, 1, -1);
			continue;
		}
		if (n <= 0)
			return;
		from += n;
		size -= n;
	}
}

static void answer(int fd, const char *target, int status, const char *body, size_t size)
{
	char head[256];
	struct iovec parts[2];
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	int n = snprintf(head, sizeof(head), "HTTP/1.1 %d Sure\r\nContent-Length: %zu\r\n\r\n", status, size);

	parts[0] = (struct iovec){head, n};
	parts[1] = (struct iovec){(char *)body, size};
	if (!strncmp(target, "/write/", 7)) {
		all(fd, head, n);
		all(fd, body, size);
	} else if (!strncmp(target, "/writev/", 8)) {
		if (writev(fd, parts, 2) < 0)
			return;
	} else if (!strncmp(target, "/send/", 6)) {
		send(fd, head, n, MSG_MORE);
		send(fd, body, size, 0);
	} else if (!strncmp(target, "/sendfile/", 10)) {
		off_t from = 0;

		all(fd, head, n);
		while (from < (off_t)size && sendfile(fd, file, &from, size - from) > 0)
			;
	} else if (!strncmp(target, "/chunked/", 9)) {
		n = snprintf(head, sizeof(head), "HTTP/1.1 %d Sure\r\nTransfer-Encoding: chunked\r\n\r\n", status);
		all(fd, head, n);
		all(fd, "5\r\nhello\r\n", 10);
		all(fd, "3\r\nyou\r\n0\r\n\r\n", 13);
	} else if (!strncmp(target, "/short/", 7)) {
		int small = 16 * 1024, flags = fcntl(fd, F_GETFL);

		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
		fcntl(fd, F_SETFL, flags | O_NONBLOCK);
		n = snprintf(head, sizeof(head), "HTTP/1.1 %d Sure\r\nContent-Length: %d\r\n\r\n", status, BIG);
		all(fd, head, n);
		all(fd, big, BIG);
		fcntl(fd, F_SETFL, flags);
	} else {
		sendmsg(fd, &message, 0);
	}
}

static void *serve(void *argument)
{
	int fd = (int)(long)argument, one = 1;
	char *at = malloc(ROOM);
	size_t have = 0;
	unsigned turn = 0;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	for (;;) {
		ssize_t n = receive(fd, at + have, ROOM - 1 - have, turn++);
		char *end;

		if (n <= 0)
			break;
		have += n;
		at[have] = 0;
		while ((end = strstr(at, "\r\n\r\n"))) {
			char method[16], target[256], *length = strstr(at, "Content-Length: ");
			size_t used = end + 4 - at + (length && length < end ? strtoul(length + 16, NULL, 10) : 0);

			if (used > have)
				break;
			sscanf(at, "%15s %255s", method, target);
			answer(fd, target, strstr(target, "missing") ? 404 : 200, "hello, you", 10);
			memmove(at, at + used, have - used + 1);
			have -= used;
		}
	}
	free(at);
	close(fd);
	return NULL;
}

int main(int count, char **arguments)
{
	int listener, one = 1, fd;
	pthread_t thread;

	if (count != 3)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	memset(big, 'x', sizeof(big));
	file = memfd_create("body", 0);
	if (write(file, big, 4096) != 4096)
		return 1;
	if (!strcmp(arguments[1], "unix")) {
		struct sockaddr_un address = {.sun_family = AF_UNIX};

		strncpy(address.sun_path, arguments[2], sizeof(address.sun_path) - 1);
		listener = socket(AF_UNIX, SOCK_STREAM, 0);
		if (bind(listener, (struct sockaddr *)&address, sizeof(address)))
			return 1;
	} else {
		struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(arguments[2])),
					       .sin6_addr = IN6ADDR_LOOPBACK_INIT};
		struct sockaddr_in old = {.sin_family = AF_INET, .sin_port = address.sin6_port,
					  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		int is_old = !strcmp(arguments[1], "tcp4");

		listener = socket(is_old ? AF_INET : AF_INET6, SOCK_STREAM, 0);
		setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (bind(listener, is_old ? (struct sockaddr *)&old : (struct sockaddr *)&address,
			 is_old ? sizeof(old) : sizeof(address)))
			return 1;
	}
	listen(listener, 64);
	puts("ready");
	fflush(stdout);
	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		pthread_create(&thread, NULL, serve, (void *)(long)fd);
		pthread_detach(thread);
	}
	return 0;
}
