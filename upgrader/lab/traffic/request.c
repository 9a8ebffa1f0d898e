/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "pktflow.h"
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct reply pending;
static const char *const state_names[] = { "waiting", "running", "done" };
static uint64_t garbage_lines;
static struct { int fd; uint64_t sent_ns, deadline_ns; uint16_t sequence; char id[20]; } ping = { .fd = -1 };

/* ---- replies ---- */

static uint32_t crc32_of(const uint8_t *data, size_t length)
{
    static uint32_t table[256];
    uint32_t crc = 0xffffffffu;
    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int bit = 0; bit < 8; bit++)
                c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
            table[i] = c;
        }
    while (length--)
        crc = table[(crc ^ *data++) & 0xff] ^ (crc >> 8);
    return ~crc;
}

static void reply_words(const char *id, bool ok, const char *format, va_list args)
{
    char *to = (char *)pending.bytes;
    size_t room = LINE_BYTES - 1;
    int n = snprintf(to, room, PROTOCOL " id=%s ok=%d%s", id, ok, ok ? " " : " error=");
    int m = vsnprintf(to + n, room - (size_t)n, format, args);
    size_t length = (size_t)n + (size_t)(m < 0 ? 0 : m);
    if (length > room - 1)
        length = room - 1;
    to[length++] = '\n';
    pending.length = length;
    pending.done = 0;
}

__attribute__((format(printf, 2, 3))) static void reply(const char *id, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    reply_words(id, true, format, args);
    va_end(args);
}

__attribute__((format(printf, 2, 3))) static void refuse(const char *id, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    reply_words(id, false, format, args);
    va_end(args);
}

/* ---- arguments ---- */

/* The value of `key` in a request, copied to `to`; false when it is missing or too long. */
static bool word(const char *request, const char *key, char *to, size_t room)
{
    size_t key_len = strlen(key);
    for (const char *at = request; (at = strstr(at, key)); at += key_len) {
        if ((at != request && at[-1] != ' ') || at[key_len] != '=')
            continue;
        const char *value = at + key_len + 1;
        size_t length = strcspn(value, " ");
        if (!length || length >= room)
            return false;
        memcpy(to, value, length);
        to[length] = 0;
        return true;
    }
    return false;
}

/* The whole number `key`, `fallback` when it is missing; false when it is not one within [low, high]. */
static bool number(const char *request, const char *key, uint64_t fallback, uint64_t low, uint64_t high, uint64_t *to)
{
    char text[24], *end;
    if (!word(request, key, text, sizeof text)) {
        *to = fallback;
        return fallback >= low && fallback <= high;
    }
    errno = 0;
    *to = strtoull(text, &end, 10);
    return text[0] != '-' && !*end && !errno && *to >= low && *to <= high;
}

static bool address(const char *request, uint64_t port, struct sockaddr_in *to)
{
    char text[INET_ADDRSTRLEN];
    memset(to, 0, sizeof *to);
    to->sin_family = AF_INET;
    to->sin_port = htons((uint16_t)port);
    return word(request, "dst", text, sizeof text) && inet_pton(AF_INET, text, &to->sin_addr) == 1;
}

/* ---- requests ---- */

static void do_recv(const char *id, const char *request)
{
    uint64_t flow_id, port, records, duration_ms, rcvbuf;
    if (!number(request, "flow", 0, 1, UINT32_MAX, &flow_id) || !number(request, "port", 0, 1, 65535, &port) ||
        !number(request, "records", 0, 1, 1u << 28, &records) ||
        !number(request, "duration_ms", 0, 1, 86400000, &duration_ms) ||
        !number(request, "rcvbuf", 8u << 20, 4096, 1u << 30, &rcvbuf)) {
        refuse(id, "recv needs flow, port, records, duration_ms as numbers in range");
        return;
    }
    if (find_flow(flow_id)) {
        refuse(id, "flow %lu exists", flow_id);
        return;
    }
    struct flow *flow = new_flow((uint32_t)flow_id, records * sizeof(struct record));
    if (!flow) {
        refuse(id, "no room: %zu bytes of record memory left, %d flows at most", memory_left, MAX_FLOWS);
        return;
    }
    struct sockaddr_in local = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    int size = (int)rcvbuf, one = 1;
    socklen_t length = sizeof flow->rcvbuf;
    flow->fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    flow->capacity = records;
    flow->start_ns = mono_ns();
    flow->end_ns = flow->start_ns + duration_ms * 1000000;
    if (setsockopt(flow->fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size))
        setsockopt(flow->fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    getsockopt(flow->fd, SOL_SOCKET, SO_RCVBUF, &flow->rcvbuf, &length);
    if (flow->fd < 0 || setsockopt(flow->fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one) ||
        setsockopt(flow->fd, SOL_SOCKET, SO_RXQ_OVFL, &one, sizeof one) ||
        bind(flow->fd, (struct sockaddr *)&local, sizeof local)) {
        refuse(id, "cannot receive on port %lu: %s", port, strerror(errno));
        drop_flow(flow);
        return;
    }
    flow->state = RUNNING;
    measure_clock_offset();
    reply(id, "flow=%u rcvbuf=%u", flow->id, flow->rcvbuf);
}

static void do_send(const char *id, const char *request)
{
    uint64_t flow_id, port, rate, duration_ms, size, late_us, phase;
    struct sockaddr_in peer;
    if (!number(request, "flow", 0, 1, UINT32_MAX, &flow_id) || !number(request, "port", 0, 1, 65535, &port) ||
        !number(request, "rate_pps", 0, 1, 1000000, &rate) ||
        !number(request, "duration_ms", 0, 1, 86400000, &duration_ms) ||
        !number(request, "size", 64, sizeof(struct payload), 1472, &size) ||
        !number(request, "late_us", 1000, 1, 10000000, &late_us) ||
        !number(request, "phase_ns", 0, 0, NS, &phase) || !address(request, port, &peer)) {
        refuse(id, "send needs flow, dst, port, rate_pps, duration_ms in range (size %zu to 1472)",
               sizeof(struct payload));
        return;
    }
    uint64_t total = rate * duration_ms / 1000;
    if (!total || find_flow(flow_id)) {
        refuse(id, total ? "flow %lu exists" : "flow %lu would not send one packet", flow_id);
        return;
    }
    struct flow *flow = new_flow((uint32_t)flow_id, total * sizeof(uint32_t));
    if (!flow) {
        refuse(id, "no room: %zu bytes of record memory left, %d flows at most", memory_left, MAX_FLOWS);
        return;
    }
    flow->sender = true;
    flow->rate_pps = rate;
    flow->total = total;
    flow->size = (unsigned)size;
    flow->late_ns = late_us * 1000;
    flow->phase_ns = phase;
    flow->fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (flow->fd < 0 || connect(flow->fd, (struct sockaddr *)&peer, sizeof peer)) {
        refuse(id, "cannot send there: %s", strerror(errno));
        drop_flow(flow);
        return;
    }
    reply(id, "flow=%u total=%lu", flow->id, total);
}

static void do_go(const char *id, const char *request)
{
    uint64_t in_ms, start = mono_ns();
    int started = 0;
    if (!number(request, "in_ms", 50, 0, 60000, &in_ms)) {
        refuse(id, "go needs in_ms up to 60000");
        return;
    }
    start += in_ms * 1000000;
    for (int i = 0; i < MAX_FLOWS; i++) {
        struct flow *flow = &flows[i];
        if (!flow->used || !flow->sender || flow->state != WAITING)
            continue;
        flow->start_ns = start + flow->phase_ns;
        flow->end_ns = scheduled_ns(flow, flow->total);
        flow->state = RUNNING;
        started++;
    }
    reply(id, "start_ns=%lu started=%d", start, started);
}

static void do_stop(const char *id, const char *request)
{
    uint64_t flow_id;
    int stopped = 0;
    number(request, "flow", 0, 0, UINT32_MAX, &flow_id);
    for (int i = 0; i < MAX_FLOWS; i++)
        if (flows[i].used && flows[i].state != DONE && (!flow_id || flows[i].id == flow_id)) {
            finish_flow(&flows[i]);
            stopped++;
        }
    reply(id, "stopped=%d", stopped);
}

static void do_status(const char *id, const char *request)
{
    uint64_t flow_id;
    struct flow *f = number(request, "flow", 0, 1, UINT32_MAX, &flow_id) ? find_flow(flow_id) : NULL;
    if (!f)
        refuse(id, "no such flow");
    else if (f->sender)
        reply(id, "kind=send state=%s start_ns=%lu rate_pps=%lu scheduled=%lu sent=%lu unsent=%lu no_buffer=%lu "
              "failed=%lu refused=%lu last_errno=%d late=%lu worst_late_ns=%lu bytes=%lu", state_names[f->state],
              f->start_ns, f->rate_pps, f->next, f->sent, f->unsent, f->no_buffer, f->failed, f->refused,
              f->last_errno, f->late, f->worst_late_ns, f->next * sizeof *f->lateness_us);
    else {
        if (f->fd >= 0)
            read_queue_drops(f);
        reply(id, "kind=recv state=%s received=%lu overflow=%lu strangers=%lu queue_drops=%u clock_steps=%lu "
              "rcvbuf=%u bytes=%lu", state_names[f->state], f->count, f->overflow, f->strangers, f->queue_drops,
              f->clock_steps, f->rcvbuf, f->count * sizeof *f->records);
    }
}

static void do_fetch(const char *id, const char *request)
{
    uint64_t flow_id, offset, length;
    struct flow *flow = number(request, "flow", 0, 1, UINT32_MAX, &flow_id) ? find_flow(flow_id) : NULL;
    if (!flow || flow->state != DONE) {
        refuse(id, flow ? "the flow has not ended" : "no such flow");
        return;
    }
    uint64_t bytes = flow->sender ? flow->next * sizeof *flow->lateness_us : flow->count * sizeof *flow->records;
    if (!number(request, "offset", 0, 0, bytes, &offset) ||
        !number(request, "length", BULK_BYTES, 1, BULK_BYTES, &length)) {
        refuse(id, "fetch takes offset up to %lu and length up to %u", bytes, BULK_BYTES);
        return;
    }
    if (length > bytes - offset)
        length = bytes - offset;
    const uint8_t *from = (const uint8_t *)flow->records + offset;
    reply(id, "length=%lu crc32=%08x", length, crc32_of(from, length));
    memcpy(pending.bytes + pending.length, from, length);
    pending.length += length;
}

/* Over netlink and not sysfs: a process that was only moved to another network namespace still sees the old one's
 * /sys/class/net. */
static void do_link(const char *id, const char *request)
{
    struct { struct nlmsghdr header; struct ifinfomsg info; } query = {
        .header = { .nlmsg_len = sizeof query, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST },
        .info = { .ifi_family = AF_UNSPEC } };
    static uint8_t answer[16384] __attribute__((aligned(8)));
    struct nlmsghdr *header = (struct nlmsghdr *)answer;
    char name[IFNAMSIZ];
    if (!word(request, "if", name, sizeof name) || !(query.info.ifi_index = (int)if_nametoindex(name))) {
        refuse(id, "no such interface");
        return;
    }
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    ssize_t n = fd < 0 || send(fd, &query, sizeof query, 0) < 0 ? -1 : recv(fd, answer, sizeof answer, 0);
    close(fd);
    if (n < (ssize_t)sizeof *header || header->nlmsg_type != RTM_NEWLINK) {
        refuse(id, "the kernel does not tell about %s", name);
        return;
    }
    uint32_t changes = 0, ups = 0, downs = 0;
    uint8_t carrier = 0, mac[6] = { 0 };
    struct rtnl_link_stats64 stats = { 0 };
    int room = (int)(header->nlmsg_len - NLMSG_LENGTH(sizeof(struct ifinfomsg)));
    for (struct rtattr *a = IFLA_RTA(NLMSG_DATA(header)); RTA_OK(a, room); a = RTA_NEXT(a, room)) {
        void *to = NULL;
        size_t size = 4;
        switch (a->rta_type) {
        case IFLA_CARRIER: to = &carrier; size = 1; break;
        case IFLA_CARRIER_CHANGES: to = &changes; break;
        case IFLA_CARRIER_UP_COUNT: to = &ups; break;
        case IFLA_CARRIER_DOWN_COUNT: to = &downs; break;
        case IFLA_ADDRESS: to = mac; size = sizeof mac; break;
        case IFLA_STATS64: to = &stats; size = sizeof stats; break;
        }
        if (to)
            memcpy(to, RTA_DATA(a), RTA_PAYLOAD(a) < size ? RTA_PAYLOAD(a) : size);
    }
    reply(id, "ifindex=%d carrier=%u carrier_changes=%u carrier_up=%u carrier_down=%u "
          "mac=%02x:%02x:%02x:%02x:%02x:%02x rx_packets=%llu tx_packets=%llu rx_dropped=%llu tx_dropped=%llu "
          "uptime_ns=%lu", query.info.ifi_index, carrier, changes, ups, downs, mac[0], mac[1], mac[2], mac[3], mac[4],
          mac[5], (unsigned long long)stats.rx_packets, (unsigned long long)stats.tx_packets,
          (unsigned long long)stats.rx_dropped, (unsigned long long)stats.tx_dropped, clock_ns(CLOCK_BOOTTIME));
}

int ping_fd(void) { return ping.fd; }
uint64_t ping_deadline_ns(void) { return ping.deadline_ns; }

void forget_ping(void)
{
    if (ping.fd >= 0)
        close(ping.fd);
    ping.fd = -1;
}

static void do_ping(const char *id, const char *request)
{
    uint64_t timeout_ms;
    struct sockaddr_in peer;
    static uint16_t sequence;
    if (!number(request, "timeout_ms", 1000, 1, 10000, &timeout_ms) || !address(request, 0, &peer)) {
        refuse(id, "ping needs dst and timeout_ms up to 10000");
        return;
    }
    forget_ping();
    ping.fd = socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_ICMP);
    struct icmphdr echo = { .type = ICMP_ECHO };
    echo.un.echo.id = htons((uint16_t)getpid());
    echo.un.echo.sequence = ping.sequence = htons(++sequence);
    uint32_t sum = ICMP_ECHO << 8;
    sum += ntohs(echo.un.echo.id) + (uint32_t)ntohs(echo.un.echo.sequence);
    sum = (sum & 0xffff) + (sum >> 16);
    echo.checksum = htons((uint16_t)~(sum + (sum >> 16)));
    ping.sent_ns = mono_ns();
    ping.deadline_ns = ping.sent_ns + timeout_ms * 1000000;
    snprintf(ping.id, sizeof ping.id, "%s", id);
    if (ping.fd < 0) {
        refuse(id, "cannot ping: %s", strerror(errno));
    } else if (connect(ping.fd, (struct sockaddr *)&peer, sizeof peer) || send(ping.fd, &echo, sizeof echo, 0) < 0) {
        forget_ping();                              /* no route there: as unreachable as a peer that is silent */
        reply(id, "reachable=0 rtt_us=0");
    }
}

void finish_ping(uint64_t now)
{
    uint8_t packet[256];
    bool answered = false;
    ssize_t n;
    while (!answered && (n = recv(ping.fd, packet, sizeof packet, 0)) > 0) {
        size_t head = (size_t)(packet[0] & 15) * 4;
        struct icmphdr echo;
        if ((size_t)n < head + sizeof echo)
            continue;
        memcpy(&echo, packet + head, sizeof echo);
        answered = echo.type == ICMP_ECHOREPLY && echo.un.echo.id == htons((uint16_t)getpid()) &&
                   echo.un.echo.sequence == ping.sequence;
    }
    if (!answered && now < ping.deadline_ns)
        return;
    reply(ping.id, "reachable=%d rtt_us=%lu", answered, (now - ping.sent_ns) / 1000);
    forget_ping();
}

void count_garbage(void) { garbage_lines++; }

void do_request(const char *line)
{
    char id[17] = "0", command[16] = "";
    bool ours = !strncmp(line, PROTOCOL " ", sizeof PROTOCOL) && word(line, "id", id, sizeof id) &&
                strspn(id, "0123456789abcdef") == strlen(id) && word(line, "cmd", command, sizeof command);
    if (!*line)
        return;                                     /* a client's way of ending what another left unfinished */
    if (!ours) {
        garbage_lines++;
        refuse("0", "not a " PROTOCOL " request");
    } else if (!strcmp(command, "hello"))
        reply(id, "version=1 pid=%d memory=%zu fifo=%d nice=%d garbage=%lu", getpid(), memory_left,
              sched_getscheduler(0) == SCHED_FIFO, getpriority(PRIO_PROCESS, 0), garbage_lines);
    else if (!strcmp(command, "clock"))
        reply(id, "mono_ns=%lu real_ns=%lu", mono_ns(), clock_ns(CLOCK_REALTIME));
    else if (!strcmp(command, "link"))
        do_link(id, line);
    else if (!strcmp(command, "ping"))
        do_ping(id, line);
    else if (!strcmp(command, "recv"))
        do_recv(id, line);
    else if (!strcmp(command, "send"))
        do_send(id, line);
    else if (!strcmp(command, "go"))
        do_go(id, line);
    else if (!strcmp(command, "stop"))
        do_stop(id, line);
    else if (!strcmp(command, "status"))
        do_status(id, line);
    else if (!strcmp(command, "fetch"))
        do_fetch(id, line);
    else if (!strcmp(command, "clear")) {
        for (int i = 0; i < MAX_FLOWS; i++)
            if (flows[i].used)
                drop_flow(&flows[i]);
        reply(id, "memory=%zu", memory_left);
    } else
        refuse(id, "unknown command %s", command);
}

