// SPDX-License-Identifier: Apache-2.0
// Two ends of a TLS connection in one process.  Reads commands: over memory, "pairs N", "extended N", "thread N", "fork N"
// move bytes that are no protocol's, "http N" requests and responses; "wire N" the latter over TCP.  Answers each with
// the nanoseconds of CPU that a pair of write and read took, and the bytes moved.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static SSL *ends[2], *speaking[2], *wired[2];
static char text[200] = "onlooker sees the bytes that a process sends and receives";

// Some 180 bytes each.
static const char request[] = "GET /items/4711?page=2 HTTP/1.1\r\nHost: 127.0.0.1:8443\r\nUser-Agent: talk/1.0\r\n"
			      "Accept: */*\r\nAccept-Language: en\r\nX-Request: 0123456789abcdef0123456789abcdef\r\n"
			      "Connection: keep-alive\r\n\r\n";
static const char response[] = "HTTP/1.1 200 OK\r\nServer: talk\r\nContent-Type: text/plain\r\n"
			       "Date: Sun, 22 Nov 2026 10:00:00 GMT\r\nContent-Length: 64\r\n\r\n"
			       "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

static void connect_by_tcp(int sockets[2])
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	sockets[0] = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (void *)&address, length) || listen(listener, 1) ||
	    getsockname(listener, (void *)&address, &length) || connect(sockets[0], (void *)&address, length))
		exit(6);
	sockets[1] = accept(listener, NULL, NULL);
	close(listener);
	for (int i = 0; i < 2; i++) {
		fcntl(sockets[i], F_SETFL, O_NONBLOCK);
		setsockopt(sockets[i], IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	}
}

static void handshake(SSL *ends[2], int by_tcp, const char *certificate, const char *key)
{
	int sockets[2];

	for (int i = 0; i < 2; i++) {
		SSL_CTX *context = SSL_CTX_new(i ? TLS_server_method() : TLS_client_method());
		if (i && (SSL_CTX_use_certificate_file(context, certificate, SSL_FILETYPE_PEM) != 1 ||
			  SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1))
			exit(3);
		ends[i] = SSL_new(context);
	}
	if (by_tcp) {
		connect_by_tcp(sockets);
		SSL_set_fd(ends[0], sockets[0]);
		SSL_set_fd(ends[1], sockets[1]);
	} else {
		BIO *one, *other;
		BIO_new_bio_pair(&one, 1 << 16, &other, 1 << 16);
		SSL_set_bio(ends[0], one, one);
		SSL_set_bio(ends[1], other, other);
	}
	SSL_set_connect_state(ends[0]);
	SSL_set_accept_state(ends[1]);
	for (int i = 0; i < 20; i++) {
		SSL_do_handshake(ends[0]);
		SSL_do_handshake(ends[1]);
	}
}

static long talk(long pairs, int extended, double *ns)
{
	struct timespec begin, end;
	char buffer[4096];
	long moved = 0;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
	for (long i = 0; i < pairs; i++) {
		size_t wrote = 0, read = 0;
		if (extended) {
			SSL_write_ex(ends[0], text, sizeof(text), &wrote);
			SSL_read_ex(ends[1], buffer, sizeof(buffer), &read);
		} else {
			wrote = SSL_write(ends[0], text, sizeof(text));
			read = SSL_read(ends[1], buffer, sizeof(buffer));
		}
		if (wrote != sizeof(text) || read != sizeof(text))
			exit(4);
		moved += read;
	}
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
	*ns = ((end.tv_sec - begin.tv_sec) * 1e9 + (end.tv_nsec - begin.tv_nsec)) / (pairs ? pairs : 1);
	return moved;
}

static long converse(SSL *ends[2], long pairs, double *ns)
{
	struct timespec begin, end;
	char buffer[4096];
	long moved = 0;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
	for (long i = 0; i < pairs; i++) {
		const char *said = i & 1 ? response : request;
		int length = (i & 1 ? sizeof(response) : sizeof(request)) - 1, got, tries = 0;

		if (SSL_write(ends[i & 1], said, length) != length)
			exit(4);
		while ((got = SSL_read(ends[!(i & 1)], buffer, sizeof(buffer))) <= 0 && tries++ < 1000)
			;
		if (got != length)
			exit(4);
		moved += got;
	}
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
	*ns = ((end.tv_sec - begin.tv_sec) * 1e9 + (end.tv_nsec - begin.tv_nsec)) / (pairs ? pairs : 1);
	return moved;
}

static void *in_thread(void *argument)
{
	double ns;
	return (void *)talk((long)argument, 0, &ns);
}

int main(int argc, char **argv)
{
	char command[32];
	long pairs;

	if (argc < 3)
		return 2;
	handshake(ends, 0, argv[1], argv[2]);
	handshake(speaking, 0, argv[1], argv[2]);
	printf("ready\n");
	fflush(stdout);
	while (scanf("%31s %ld", command, &pairs) == 2) {
		double ns = 0;
		long moved = 0;
		if (!strcmp(command, "thread")) {
			pthread_t thread;
			void *result;
			pthread_create(&thread, NULL, in_thread, (void *)pairs);
			pthread_join(thread, &result);
			moved = (long)result;
		} else if (!strcmp(command, "fork")) {
			int pipes[2];
			if (pipe(pipes))
				return 5;
			if (!fork()) {
				double result[2];
				result[1] = talk(pairs, 0, &result[0]);
				_exit(write(pipes[1], result, sizeof(result)) != sizeof(result));
			}
			double result[2];
			if (read(pipes[0], result, sizeof(result)) != sizeof(result))
				return 5;
			ns = result[0];
			moved = result[1];
			wait(NULL);
			close(pipes[0]);
			close(pipes[1]);
		} else if (!strcmp(command, "http")) {
			moved = converse(speaking, pairs, &ns);
		} else if (!strcmp(command, "wire")) {
			if (!wired[0])
				handshake(wired, 1, argv[1], argv[2]);
			moved = converse(wired, pairs, &ns);
		} else {
			moved = talk(pairs, !strcmp(command, "extended"), &ns);
		}
		printf("%.1f %ld\n", ns, moved);
		fflush(stdout);
	}
	return 0;
}
