// SPDX-License-Identifier: Apache-2.0
// Two ends of a TLS connection in one process, over memory.  Reads commands: "pairs N", "extended N", "thread N",
// "fork N"; answers each with the nanoseconds of CPU that a pair of write and read took, and the bytes moved.
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static SSL *ends[2];
static char text[200] = "onlooker sees the bytes that a process sends and receives";

static void handshake(const char *certificate, const char *key)
{
	for (int i = 0; i < 2; i++) {
		SSL_CTX *context = SSL_CTX_new(i ? TLS_server_method() : TLS_client_method());
		if (i && (SSL_CTX_use_certificate_file(context, certificate, SSL_FILETYPE_PEM) != 1 ||
			  SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1))
			exit(3);
		ends[i] = SSL_new(context);
	}
	BIO *one, *other;
	BIO_new_bio_pair(&one, 1 << 16, &other, 1 << 16);
	SSL_set_bio(ends[0], one, one);
	SSL_set_bio(ends[1], other, other);
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
	handshake(argv[1], argv[2]);
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
		} else {
			moved = talk(pairs, !strcmp(command, "extended"), &ns);
		}
		printf("%.1f %ld\n", ns, moved);
		fflush(stdout);
	}
	return 0;
}
