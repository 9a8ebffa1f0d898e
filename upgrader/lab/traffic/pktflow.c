/* SPDX-License-Identifier: Apache-2.0
 *
 * pktflow: the sender and the receiver of the interruption measurement, in one process and one thread.
 *
 * It runs in a guest (`pktflow --serve /dev/virtio-ports/NAME`, a slow emulated vCPU) and in a network namespace
 * of the host (`pktflow --serve -`, requests on stdin, replies on stdout). Static, Linux only, little-endian.
 *
 * A request and its reply are one line each:
 *     pktflow/1 id=HEX cmd=NAME key=value ...
 *     pktflow/1 id=HEX ok=1 key=value ...          or   pktflow/1 id=HEX ok=0 error=words to the end of the line
 * A reply with `length=N crc32=HEX` is followed by N raw bytes. Nothing is sent unasked.
 *
 *   hello                                        version, pid, memory left, scheduling
 *   clock                                        CLOCK_MONOTONIC and CLOCK_REALTIME now
 *   link   if=NAME                               carrier and its change counters, ifindex, packets, uptime
 *   ping   dst=IP timeout_ms=T                   one ICMP echo
 *   recv   flow=ID port=P records=N duration_ms=D [rcvbuf=BYTES]        records from now on, for D at most
 *   send   flow=ID dst=IP port=P rate_pps=R duration_ms=D [size=64] [late_us=1000] [phase_ns=0]    waits for `go`
 *   go     in_ms=T                               starts every sender that waits, all on one schedule
 *   stop   [flow=ID]                             ends flows now; what a sender had not yet scheduled does not count
 *   status flow=ID                               counters
 *   fetch  flow=ID offset=BYTE length=BYTES      a piece of a finished flow's records; asking again is harmless
 *   clear                                        forgets all flows
 *
 * Records of a receiver: { u64 sequence, u64 kernel receive time ns } per packet; of a sender: u32 lateness in us per
 * scheduled sequence number, 0xffffffff = never sent. All times are this machine's CLOCK_MONOTONIC.
 */
#define _GNU_SOURCE
#include "pktflow.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define IDLE_NS (NS / 5)
#define CLOCK_CHECK_NS NS

static struct {
    int in, out;
    const char *path;                               /* NULL: stdin and stdout, whose end ends us */
    char line[LINE_BYTES];
    size_t line_len;
    bool skipping;                                  /* an overlong line, until its end */
    bool tty;                                       /* once hung up it stays so; a virtio port comes back */
    uint64_t away_until_ns;                         /* nobody at the other end: do not poll a fd that hangs up */
} channel = { .in = -1, .out = -1 };

/* The other end has gone. What was said half-way means nothing to whoever comes next; flows go on to their end. */
static void lose_host(uint64_t now, bool reopen)
{
    if (!channel.path)
        exit(0);
    if (reopen) {
        close(channel.in);
        channel.in = channel.out = -1;
    }
    channel.line_len = pending.length = pending.done = 0;
    channel.skipping = false;
    channel.away_until_ns = now + IDLE_NS;
    forget_ping();
}

static bool open_channel(void)
{
    if (!channel.path) {
        channel.in = 0;
        channel.out = 1;
        fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
        fcntl(1, F_SETFL, fcntl(1, F_GETFL) | O_NONBLOCK);
        return true;
    }
    channel.in = channel.out = open(channel.path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (channel.in < 0)
        return false;
    struct termios raw;
    channel.tty = !tcgetattr(channel.in, &raw);
    if (channel.tty) {                              /* it would echo and translate */
        cfmakeraw(&raw);
        tcsetattr(channel.in, TCSANOW, &raw);
    }
    return true;
}

static void write_reply(uint64_t now)
{
    ssize_t n = write(channel.out, pending.bytes + pending.done, pending.length - pending.done);
    if (n > 0 && (pending.done += (size_t)n) == pending.length)
        pending.length = pending.done = 0;
    else if (n < 0 && errno != EAGAIN && errno != EINTR)
        lose_host(now, true);
}

/* Takes requests from the line buffer, one reply at a time: whoever does not read gets no second answer. */
static void take_lines(void)
{
    char *end;
    while (!pending.length && (end = memchr(channel.line, '\n', channel.line_len))) {
        size_t used = (size_t)(end - channel.line) + 1;
        *end = 0;
        if (used > 1 && end[-1] == '\r')
            *--end = 0;
        if (channel.skipping || end != channel.line + strlen(channel.line))
            count_garbage();                        /* the end of an overlong line, or binary */
        else
            do_request(channel.line);
        channel.skipping = false;
        channel.line_len -= used;
        memmove(channel.line, channel.line + used, channel.line_len);
    }
    if (channel.line_len == LINE_BYTES && !memchr(channel.line, '\n', channel.line_len)) {
        channel.skipping = true;
        channel.line_len = 0;
    }
}

static void read_requests(uint64_t now)
{
    ssize_t n = read(channel.in, channel.line + channel.line_len, LINE_BYTES - channel.line_len);
    if (n > 0)
        channel.line_len += (size_t)n;
    else if (n == 0)
        lose_host(now, channel.tty);
    else if (errno != EAGAIN && errno != EINTR)
        lose_host(now, true);
}

/* Sleeps until `wake`, a request, a ping's answer, or room for a reply. */
static void wait_and_talk(uint64_t wake)
{
    struct pollfd fds[2];
    nfds_t count = 0;
    bool talking = false;
    uint64_t now = mono_ns();

    take_lines();
    if (now >= channel.away_until_ns && (channel.in >= 0 || open_channel())) {
        talking = true;
        if (pending.length)
            fds[count++] = (struct pollfd){ .fd = channel.out, .events = POLLOUT };
        else
            fds[count++] = (struct pollfd){ .fd = channel.in, .events = POLLIN };
    }
    if (ping_fd() >= 0) {
        fds[count++] = (struct pollfd){ .fd = ping_fd(), .events = POLLIN };
        if (ping_deadline_ns() < wake)
            wake = ping_deadline_ns();
    }
    if (wake > now + IDLE_NS)
        wake = now + IDLE_NS;
    uint64_t rest = wake > now ? wake - now : 0;
    struct timespec timeout = { (time_t)(rest / NS), (long)(rest % NS) };
    if (ppoll(fds, count, &timeout, NULL) < 0)
        return;
    now = mono_ns();
    if (talking && fds[0].revents & POLLOUT)
        write_reply(now);
    else if (talking && fds[0].revents & POLLIN)
        read_requests(now);
    else if (talking && fds[0].revents)
        lose_host(now, channel.tty);
    if (ping_fd() >= 0 && !pending.length)
        finish_ping(now);
}

static int usage(void)
{
    fputs("usage: pktflow --serve PATH|- [--fifo PRIORITY] [--nice N] [--memory-mib N]\n", stderr);
    return 2;
}

int main(int argc, char **argv)
{
    const char *serve = NULL;
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc)
            return usage();
        const char *value = argv[i + 1];
        if (!strcmp(argv[i], "--serve"))
            serve = value;
        else if (!strcmp(argv[i], "--fifo")) {
            struct sched_param priority = { .sched_priority = atoi(value) };
            if (priority.sched_priority && sched_setscheduler(0, SCHED_FIFO, &priority))
                perror("pktflow: no real-time priority, going on without");
        } else if (!strcmp(argv[i], "--nice")) {
            if (setpriority(PRIO_PROCESS, 0, atoi(value)))
                perror("pktflow: no priority, going on without");
        } else if (!strcmp(argv[i], "--memory-mib") && atoi(value) > 0)
            memory_left = (size_t)atoi(value) << 20;
        else
            return usage();
    }
    if (!serve)
        return usage();
    channel.path = strcmp(serve, "-") ? serve : NULL;
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1ul, 0, 0, 0);
    mlockall(MCL_CURRENT | MCL_FUTURE);
    measure_clock_offset();

    uint64_t next_drain = 0, next_check = 0;
    for (;;) {
        uint64_t now = mono_ns(), wake = send_due(now);
        if (now >= next_drain) {
            if (now >= next_check) {
                check_clock_step();
                next_check = now + CLOCK_CHECK_NS;
            }
            next_drain = drain_all(now);
            if (next_drain == UINT64_MAX)           /* no receivers: look again when the loop next turns */
                next_drain = 0;
        }
        if (next_drain && next_drain < wake)
            wake = next_drain;
        wait_and_talk(wake);
    }
}
