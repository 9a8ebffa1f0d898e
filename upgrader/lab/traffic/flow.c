/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "pktflow.h"
#include <errno.h>
#include <linux/sock_diag.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_MEMINFO
#define SO_MEMINFO 55
#endif

#define MAGIC 0x31574f4cu
#define UNSENT 0xffffffffu
#define BATCH 64
#define SEND_BURST 256          /* sends in one turn of the loop, so that catching up starves nothing else */
#define DRAIN_NS 5000000ull     /* the kernel has stamped the packets already: collecting them may wait */
#define GIVE_UP_NS (2 * NS)     /* past its end a sender drops what is still unsent: a flow really ends */
#define CLOCK_STEP_NS 1000000   /* a CLOCK_REALTIME that moved this much against CLOCK_MONOTONIC was stepped */

struct flow flows[MAX_FLOWS];
size_t memory_left = 48u << 20;
static int64_t real_minus_mono;

/* ---- clocks ---- */

uint64_t clock_ns(int clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
}

uint64_t mono_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* CLOCK_REALTIME minus CLOCK_MONOTONIC, from the tightest of a few readings: being preempted between the two clocks
 * must not look like a step. */
static int64_t read_clock_offset(void)
{
    uint64_t best = UINT64_MAX;
    int64_t offset = 0;
    for (int i = 0; i < 5; i++) {
        uint64_t before = mono_ns(), real = clock_ns(CLOCK_REALTIME), after = mono_ns();
        if (after - before < best) {
            best = after - before;
            offset = (int64_t)(real - before - best / 2);
        }
    }
    return offset;
}

void measure_clock_offset(void) { real_minus_mono = read_clock_offset(); }

/* Kernel timestamps are CLOCK_REALTIME, which somebody may set during a run; ours must not jump. */
void check_clock_step(void)
{
    int64_t offset = read_clock_offset(), moved = offset - real_minus_mono;
    if (moved < CLOCK_STEP_NS && moved > -CLOCK_STEP_NS)
        return;
    real_minus_mono = offset;
    for (int i = 0; i < MAX_FLOWS; i++)
        if (flows[i].used && !flows[i].sender && flows[i].state == RUNNING)
            flows[i].clock_steps++;
}

/* ---- flows ---- */

struct flow *find_flow(uint64_t id)
{
    for (int i = 0; i < MAX_FLOWS; i++)
        if (flows[i].used && flows[i].id == id)
            return &flows[i];
    return NULL;
}

/* Pages are touched now, so that neither a page fault nor a shortage hits a run. */
struct flow *new_flow(uint32_t id, size_t bytes)
{
    if (bytes > memory_left)
        return NULL;
    for (int i = 0; i < MAX_FLOWS; i++) {
        if (flows[i].used)
            continue;
        void *array = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (array == MAP_FAILED)
            return NULL;
        memory_left -= bytes;
        flows[i] = (struct flow){ .used = true, .id = id, .fd = -1, .bytes = bytes, .records = array,
                                  .lateness_us = array };
        return &flows[i];
    }
    return NULL;
}

void drop_flow(struct flow *flow)
{
    if (flow->fd >= 0)
        close(flow->fd);
    munmap(flow->records, flow->bytes);
    memory_left += flow->bytes;
    flow->used = false;
}

/* Drops that no later packet was there to carry the news of. */
void read_queue_drops(struct flow *flow)
{
    uint32_t info[SK_MEMINFO_VARS];
    socklen_t length = sizeof info;
    if (!getsockopt(flow->fd, SOL_SOCKET, SO_MEMINFO, info, &length) &&
        length >= (SK_MEMINFO_DROPS + 1) * sizeof *info && info[SK_MEMINFO_DROPS] > flow->queue_drops)
        flow->queue_drops = info[SK_MEMINFO_DROPS];
}

static void drain(struct flow *flow);

void finish_flow(struct flow *flow)
{
    if (flow->state == DONE)
        return;
    if (flow->sender)
        flow->total = flow->next;
    else {
        drain(flow);
        read_queue_drops(flow);
    }
    close(flow->fd);
    flow->fd = -1;
    flow->state = DONE;
}

uint64_t scheduled_ns(const struct flow *flow, uint64_t sequence)
{
    return flow->start_ns + sequence * NS / flow->rate_pps;
}

static void send_one(struct flow *flow)
{
    static uint8_t packet[1500];
    struct payload *head = (struct payload *)packet;
    uint64_t due = scheduled_ns(flow, flow->next), now = mono_ns(), late = now - due;
    *head = (struct payload){ MAGIC, flow->id, flow->next, due, now };

    ssize_t n = send(flow->fd, packet, flow->size, MSG_DONTWAIT);
    if (n < 0 && errno == ECONNREFUSED) {           /* news of an earlier packet; this one has not been tried yet */
        flow->refused++;
        n = send(flow->fd, packet, flow->size, MSG_DONTWAIT);
    }
    if (n < 0) {
        flow->last_errno = errno;
        if (errno == ENOBUFS || errno == EAGAIN)
            flow->no_buffer++;
        else
            flow->failed++;
        flow->unsent++;
        flow->lateness_us[flow->next++] = UNSENT;
        return;
    }
    flow->sent++;
    if (late > flow->late_ns)
        flow->late++;
    if (late > flow->worst_late_ns)
        flow->worst_late_ns = late;
    flow->lateness_us[flow->next++] = late / 1000 < UNSENT ? (uint32_t)(late / 1000) : UNSENT - 1;
}

/* Sends what is due and returns when the next one is. The schedule is absolute: nothing that happens to a packet
 * moves the ones after it. */
uint64_t send_due(uint64_t now)
{
    uint64_t wake = UINT64_MAX;
    for (int i = 0; i < MAX_FLOWS; i++) {
        struct flow *flow = &flows[i];
        if (!flow->used || !flow->sender || flow->state != RUNNING)
            continue;
        if (now > flow->end_ns + GIVE_UP_NS)
            for (; flow->next < flow->total; flow->unsent++)
                flow->lateness_us[flow->next++] = UNSENT;
        int burst = SEND_BURST;
        while (flow->next < flow->total && scheduled_ns(flow, flow->next) <= now && burst--)
            send_one(flow);
        if (flow->next == flow->total)
            finish_flow(flow);
        else if (scheduled_ns(flow, flow->next) < wake)
            wake = scheduled_ns(flow, flow->next);
    }
    return wake;
}

static void keep_packet(struct flow *flow, const struct payload *head, struct msghdr *message)
{
    uint64_t real = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET)
            continue;
        if (c->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec t;
            memcpy(&t, CMSG_DATA(c), sizeof t);
            real = (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
        } else if (c->cmsg_type == SO_RXQ_OVFL)
            memcpy(&flow->queue_drops, CMSG_DATA(c), sizeof flow->queue_drops);
    }
    if (head->magic != MAGIC || head->flow != flow->id || !real)
        flow->strangers++;
    else if (flow->count == flow->capacity)
        flow->overflow++;
    else
        flow->records[flow->count++] = (struct record){ head->sequence, real - (uint64_t)real_minus_mono };
}

static void drain(struct flow *flow)
{
    static struct payload heads[BATCH];
    static char controls[BATCH][CMSG_SPACE(sizeof(struct timespec)) + CMSG_SPACE(sizeof(uint32_t))];
    static struct iovec vectors[BATCH];
    static struct mmsghdr messages[BATCH];
    int n;
    do {
        for (int i = 0; i < BATCH; i++) {
            vectors[i] = (struct iovec){ &heads[i], sizeof heads[i] };
            messages[i].msg_hdr = (struct msghdr){ .msg_iov = &vectors[i], .msg_iovlen = 1,
                                                   .msg_control = controls[i], .msg_controllen = sizeof controls[i] };
        }
        n = recvmmsg(flow->fd, messages, BATCH, MSG_DONTWAIT, NULL);
        for (int i = 0; i < n; i++) {
            if (messages[i].msg_len < sizeof heads[i])
                flow->strangers++;
            else
                keep_packet(flow, &heads[i], &messages[i].msg_hdr);
        }
    } while (n == BATCH);
}

/* Collects what has arrived and ends receivers whose time is over; returns when to come back. */
uint64_t drain_all(uint64_t now)
{
    uint64_t wake = UINT64_MAX;
    for (int i = 0; i < MAX_FLOWS; i++) {
        struct flow *flow = &flows[i];
        if (!flow->used || flow->sender || flow->state != RUNNING)
            continue;
        drain(flow);
        if (now >= flow->end_ns)
            finish_flow(flow);
        else
            wake = now + DRAIN_NS;
    }
    return wake;
}

