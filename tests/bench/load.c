/* The two ends of the `connect` benchmark, compiled by connect.py.
 *
 *   load server PORT CPU                            answers one byte with one byte, a connection at a time
 *   load connect ADDRESS PORT CPU MILLISECONDS      connect, one byte each way, closed by RST; again and again
 *   load request ADDRESS PORT CPU MILLISECONDS      one connection, one byte each way, again and again
 *
 * A client prints {"count": …, "seconds": …, "p50_us": …, "p99_us": …}. Both ends die with the process that started
 * them. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SAMPLES (1 << 22)
#define WARM_UP_NS 20000000ULL

static uint32_t samples[SAMPLES];

static void check(int failed, const char *what)
{
	if (failed) {
		fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void pin(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	check(sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity");
	check(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
}

static struct sockaddr_in address_of(const char *text, const char *port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	check(inet_pton(AF_INET, text, &address.sin_addr) != 1, "inet_pton");
	return address;
}

static void serve(const char *port)
{
	struct sockaddr_in address = address_of("0.0.0.0", port);
	int one = 1;
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	check(listener < 0, "socket");
	check(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)), "setsockopt");
	check(bind(listener, (void *)&address, sizeof(address)), "bind");
	check(listen(listener, 128), "listen");
	puts("ready");
	fflush(stdout);
	for (;;) {
		char byte;
		int peer = accept(listener, NULL, NULL);
		if (peer < 0) /* the client was faster with its RST */
			continue;
		while (read(peer, &byte, 1) == 1 && write(peer, &byte, 1) == 1)
			;
		close(peer);
	}
}

static int dial(const struct sockaddr_in *address)
{
	struct linger reset = { .l_onoff = 1, .l_linger = 0 };
	int peer = socket(AF_INET, SOCK_STREAM, 0);
	check(peer < 0, "socket");
	check(setsockopt(peer, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)), "setsockopt");
	check(connect(peer, (void *)address, sizeof(*address)), "connect");
	return peer;
}

static void ask(int peer)
{
	char byte = 'x';
	check(write(peer, &byte, 1) != 1, "write");
	check(read(peer, &byte, 1) != 1, "read");
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

static void report(uint32_t count, uint64_t elapsed)
{
	check(count == 0, "no round trip in the time given");
	qsort(samples, count, sizeof(*samples), by_size);
	printf("{\"count\": %u, \"seconds\": %.6f, \"p50_us\": %.3f, \"p99_us\": %.3f}\n", count, elapsed / 1e9,
	       samples[count / 2] / 1e3, samples[(uint64_t)count * 99 / 100] / 1e3);
}

static void run(const struct sockaddr_in *address, int connects, uint64_t length)
{
	int peer = connects ? -1 : dial(address);
	uint64_t begin = now_ns() + WARM_UP_NS, end = begin + length, last = now_ns();
	uint64_t first = 0; /* end of the last round trip of the warm-up */
	uint32_t count = 0;
	while (last < end && count < SAMPLES) {
		if (connects) {
			peer = dial(address);
			ask(peer);
			close(peer);
		} else {
			ask(peer);
		}
		uint64_t done = now_ns();
		if (last >= begin) {
			if (!first)
				first = last;
			samples[count++] = done - last;
		}
		last = done;
	}
	report(count, last - first);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "server")) {
		pin(atoi(argv[3]));
		serve(argv[2]);
	} else if (argc == 6) {
		struct sockaddr_in address = address_of(argv[2], argv[3]);
		pin(atoi(argv[4]));
		run(&address, !strcmp(argv[1], "connect"), atoll(argv[5]) * 1000000);
	} else {
		fputs("load: see the comment on top of load.c\n", stderr);
		return 2;
	}
	return 0;
}
