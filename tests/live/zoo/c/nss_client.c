/* HTTPS by NSS, plain HTTP and a plain file by the same functions of NSPR.  nss_client PORT PLAIN_PORT COUNT FILE */
#include <nspr.h>
#include <nss.h>
#include <ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static SECStatus believe(void *arg, PRFileDesc *fd, PRBool check, PRBool is_server)
{
	return SECSuccess;
}

static void fail(const char *what)
{
	fprintf(stderr, "%s: NSPR error %d\n", what, PR_GetError());
	exit(1);
}

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static PRFileDesc *reach(int port, PRBool tls)
{
	PRFileDesc *fd = PR_OpenTCPSocket(PR_AF_INET);
	PRNetAddr address;

	if (tls) {
		fd = SSL_ImportFD(NULL, fd);
		if (!fd || SSL_OptionSet(fd, SSL_SECURITY, PR_TRUE) || SSL_AuthCertificateHook(fd, believe, NULL) ||
		    SSL_SetURL(fd, "localhost"))
			fail("SSL_ImportFD");
	}
	PR_InitializeNetAddr(PR_IpAddrLoopback, port, &address);
	if (PR_Connect(fd, &address, PR_INTERVAL_NO_TIMEOUT) != PR_SUCCESS)
		fail("PR_Connect");
	return fd;
}

/* One request and its whole response; gives the status. */
static int ask(PRFileDesc *fd, const char *path, int with_send)
{
	static char text[1 << 20];
	int length = snprintf(text, sizeof(text), "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", path), have = 0, status;
	int sent = with_send ? PR_Send(fd, text, length, 0, PR_INTERVAL_NO_TIMEOUT) : PR_Write(fd, text, length);
	char *body, *field;

	if (sent != length)
		fail("PR_Write");
	for (;;) {
		int n = with_send ? PR_Recv(fd, text + have, sizeof(text) - 1 - have, 0, PR_INTERVAL_NO_TIMEOUT) :
				    PR_Read(fd, text + have, sizeof(text) - 1 - have);

		if (n <= 0)
			fail("PR_Read");
		have += n;
		text[have] = 0;
		body = strstr(text, "\r\n\r\n");
		field = strcasestr(text, "content-length:");
		if (body && field && have >= body + 4 - text + atoi(field + 15))
			break;
	}
	return sscanf(text, "HTTP/1.1 %d", &status) == 1 ? status : 0;
}

int main(int argc, char **argv)
{
	PRFileDesc *secret, *plain, *file;
	const char *pages[] = {"items", "missing", "fail", "big/65536"};
	int count = atoi(argv[3]);
	char line[16], path[128];

	if (NSS_NoDB_Init(NULL) || NSS_SetDomesticPolicy())
		fail("NSS_NoDB_Init");
	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 1;
	secret = reach(atoi(argv[1]), PR_TRUE);
	plain = reach(atoi(argv[2]), PR_FALSE);
	file = PR_Open(argv[4], PR_RDWR | PR_CREATE_FILE, 0600);
	for (int i = 0; i < count; i++) {
		long long start = now();
		int status;

		snprintf(path, sizeof(path), "/%s/nss-%d", pages[i % 4], i);
		status = ask(secret, path, i & 1);
		printf("{\"n\":%d,\"path\":\"%s\",\"status\":%d,\"start_ns\":%lld,\"end_ns\":%lld,\"tls\":true}\n", i, path,
		       status, start, now());
		if (i % 5 == 0) { /* in between, what is no TLS */
			start = now();
			snprintf(path, sizeof(path), "/items/plain-%d", i);
			status = ask(plain, path, i & 1);
			printf("{\"n\":%d,\"path\":\"%s\",\"status\":%d,\"start_ns\":%lld,\"end_ns\":%lld,\"tls\":false}\n",
			       count + i, path, status, start, now());
			PR_Write(file, "GET /no/request HTTP/1.1\r\nHost: x\r\n\r\n", 38);
		}
	}
	PR_Close(secret);
	PR_Close(plain);
	PR_Close(file);
	return 0;
}
