/* The sender of the `nodeport` benchmark, compiled by nodeport.py.
 *
 *   flood ADDRESS PORT CPU MILLISECONDS
 *
 * Sends datagrams of 18 bytes (a frame of 60) from one socket as fast as the CPU goes. One system call brings 48 of them, which the
 * device takes one by one (gso_max_segs 1), so what is measured is what becomes of a packet, not the call. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/udp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

#define SIZE 18
#define BURST 48

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void check(int failed, const char *what)
{
	if (failed) {
		fprintf(stderr, "flood: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

int main(int argc, char **argv)
{
	static char burst[SIZE * BURST];
	int segment = SIZE;
	if (argc != 5) {
		fputs("flood: see the comment on top of flood.c\n", stderr);
		return 2;
	}
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(atoi(argv[3]), &set);
	check(sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity");
	check(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])) };
	check(inet_pton(AF_INET, argv[1], &to.sin_addr) != 1, "inet_pton");
	int peer = socket(AF_INET, SOCK_DGRAM, 0);
	check(peer < 0, "socket");
	check(connect(peer, (void *)&to, sizeof(to)), "connect");
	check(setsockopt(peer, SOL_UDP, UDP_SEGMENT, &segment, sizeof(segment)), "UDP_SEGMENT");
	uint64_t begin = now_ns(), end = begin + atoll(argv[4]) * 1000000, now;
	uint64_t sent = 0;
	do {
		for (int i = 0; i < 16; i++)
			if (send(peer, burst, sizeof(burst), 0) > 0)
				sent += BURST;
		now = now_ns();
	} while (now < end);
	printf("{\"sent\": %llu, \"seconds\": %.6f}\n", (unsigned long long)sent, (now - begin) / 1e9);
	return 0;
}
