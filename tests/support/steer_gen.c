/*
 * steer_gen WIRE SINK... RATE SECONDS VNI MAC: VXLAN packets for one VM at a constant rate onto a netdev, and who got them.
 *
 * Open loop, each packet with a number of its own; every SINK is read (AF_PACKET). The sender goes before everything else
 * that wants its CPU (SCHED_FIFO): whoever turns rules would else hold it up just while they are turned. After SECONDS, and half a second for
 * stragglers, one line of JSON: sent, lost (at no sink), duplicated (more than once at any), reordered, and per sink how
 * many. "ready" is printed before the first packet. It ends by itself.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FRAME (14 + 20 + 8 + 8 + 60)
#define NUMBER_AT (FRAME - 12)
#define MAGIC "steergen"
#define MAX_SINKS 4
#define BURST 16

static uint8_t (*seen)[MAX_SINKS];
static uint64_t total, got[MAX_SINKS], reordered;
static volatile int done;
static int sinks[MAX_SINKS], n_sinks;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int open_on(const char *name, int receive)
{
	struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP),
				  .sll_ifindex = (int)if_nametoindex(name) };
	int size = 64 << 20, fd = socket(AF_PACKET, SOCK_RAW, receive ? htons(ETH_P_IP) : 0);

	if (fd < 0 || !at.sll_ifindex)
		die(name);
	if (!receive)
		at.sll_protocol = 0;
	else if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size))
		die("SO_RCVBUFFORCE");
	if (bind(fd, (void *)&at, sizeof at))
		die("bind");
	return fd;
}

static void *receive(void *unused)
{
	struct pollfd fds[MAX_SINKS];
	struct mmsghdr messages[64];
	struct iovec parts[64];
	static uint8_t frames[64][FRAME + 64];
	uint32_t last = 0;

	(void)unused;
	for (int i = 0; i < n_sinks; i++)
		fds[i] = (struct pollfd){ .fd = sinks[i], .events = POLLIN };
	while (!done) {
		poll(fds, (nfds_t)n_sinks, 50);
		for (int i = 0; i < n_sinks; i++) {
			int n;

			memset(messages, 0, sizeof messages);
			for (int k = 0; k < 64; k++) {
				parts[k] = (struct iovec){ frames[k], sizeof frames[k] };
				messages[k].msg_hdr = (struct msghdr){ .msg_iov = &parts[k], .msg_iovlen = 1 };
			}
			n = recvmmsg(sinks[i], messages, 64, MSG_DONTWAIT, NULL);
			for (int k = 0; k < n; k++) {
				uint32_t number;

				if (messages[k].msg_len != FRAME || memcmp(frames[k] + NUMBER_AT, MAGIC, 8))
					continue;
				memcpy(&number, frames[k] + NUMBER_AT + 8, 4);
				if (number >= total)
					continue;
				got[i]++;
				if (seen[number][i] < 255)
					seen[number][i]++;
				reordered += number < last;
				last = number > last ? number : last;
			}
		}
	}
	return NULL;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void build(uint8_t *f, uint32_t vni, const uint8_t *mac)
{
	uint16_t length = htons(FRAME - 14), udp = htons(FRAME - 34);

	memset(f, 0, FRAME);
	memset(f, 0xff, 6);
	f[6] = 2;
	f[12] = 8;
	f[14] = 0x45;
	memcpy(f + 16, &length, 2);
	f[22] = 64;
	f[23] = 17;
	memcpy(f + 26, "\x0a\x09\x00\x02\x0a\x09\x00\x01", 8);
	f[34] = 0xc0;
	f[36] = 4789 >> 8;
	f[37] = 4789 & 0xff;
	memcpy(f + 38, &udp, 2);
	f[42] = 8;
	f[46] = (uint8_t)(vni >> 16);
	f[47] = (uint8_t)(vni >> 8);
	f[48] = (uint8_t)vni;
	memcpy(f + 50, mac, 6);
	memcpy(f + NUMBER_AT, MAGIC, 8);
}

int main(int argc, char **argv)
{
	uint8_t frames[BURST][FRAME], mac[6];
	struct mmsghdr messages[BURST];
	struct iovec parts[BURST];
	uint64_t rate, start, sent = 0, lost = 0, duplicated = 0, late = 0;
	unsigned m[6];
	pthread_t reader;
	int wire;

	if (argc < 7 || argc - 6 > MAX_SINKS) {
		fprintf(stderr, "usage: steer_gen WIRE SINK... RATE SECONDS VNI MAC\n");
		return 2;
	}
	rate = strtoull(argv[argc - 4], NULL, 10);
	total = (uint64_t)((double)rate * atof(argv[argc - 3]));
	if (sscanf(argv[argc - 1], "%x:%x:%x:%x:%x:%x", m, m + 1, m + 2, m + 3, m + 4, m + 5) != 6)
		return 2;
	for (int i = 0; i < 6; i++)
		mac[i] = (uint8_t)m[i];
	seen = calloc(total, sizeof *seen);
	wire = open_on(argv[1], 0);
	for (n_sinks = 0; n_sinks < argc - 6; n_sinks++)
		sinks[n_sinks] = open_on(argv[2 + n_sinks], 1);
	memset(messages, 0, sizeof messages);
	for (int i = 0; i < BURST; i++) {
		build(frames[i], (uint32_t)atoi(argv[argc - 2]), mac);
		parts[i] = (struct iovec){ frames[i], FRAME };
		messages[i].msg_hdr = (struct msghdr){ .msg_iov = &parts[i], .msg_iovlen = 1 };
	}
	if (pthread_create(&reader, NULL, receive, NULL))
		die("pthread_create");
	if (sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ .sched_priority = 1 }))	/* this thread alone */
		die("SCHED_FIFO");
	puts("ready");
	fflush(stdout);
	start = now_ns();
	while (sent < total) {
		uint64_t due = (now_ns() - start) * rate / 1000000000;
		int n = 0;

		due = due < total ? due : total;
		if (due <= sent) {
			struct timespec nap = { 0, 10000 };

			nanosleep(&nap, NULL);
			continue;
		}
		late = due - sent > late ? due - sent : late;
		for (; n < BURST && sent + (uint64_t)n < due; n++) {
			uint32_t number = (uint32_t)(sent + (uint64_t)n);

			memcpy(frames[n] + NUMBER_AT + 8, &number, 4);
		}
		n = sendmmsg(wire, messages, (unsigned)n, 0);
		if (n < 0 && errno != ENOBUFS && errno != EAGAIN)
			die("sendmmsg");
		sent += n > 0 ? (uint64_t)n : 0;
	}
	usleep(500000);
	done = 1;
	pthread_join(reader, NULL);
	for (uint64_t i = 0; i < total; i++) {
		unsigned copies = 0;

		for (int k = 0; k < n_sinks; k++) {
			copies += seen[i][k] > 0;
			duplicated += seen[i][k] > 1;
		}
		lost += !copies;
		duplicated += copies > 1;
	}
	printf("{\"sent\": %lu, \"lost\": %lu, \"duplicated\": %lu, \"reordered\": %lu, \"longest_burst\": %lu, \"sinks\": {",
	       (unsigned long)sent, (unsigned long)lost, (unsigned long)duplicated, (unsigned long)reordered,
	       (unsigned long)late);
	for (int i = 0; i < n_sinks; i++)
		printf("%s\"%s\": %lu", i ? ", " : "", argv[2 + i], (unsigned long)got[i]);
	puts("}}");
	return 0;
}
