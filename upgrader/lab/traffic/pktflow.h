/* SPDX-License-Identifier: Apache-2.0
 * What pktflow's three parts share: flow.c (sending and recording), request.c (the protocol), pktflow.c (the line).
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROTOCOL "pktflow/1"
#define NS 1000000000ull
#define MAX_FLOWS 64
#define LINE_BYTES 1024
#define BULK_BYTES (64u << 10)

/* The first bytes of every packet. */
struct payload { uint32_t magic, flow; uint64_t sequence, scheduled_ns, sent_ns; };
struct record { uint64_t sequence, received_ns; };

enum state { WAITING, RUNNING, DONE };

struct flow {
    bool used, sender;
    enum state state;
    uint32_t id;
    int fd;
    size_t bytes;                                   /* of the record array, against the memory budget */
    uint64_t start_ns, end_ns;
    /* sender */
    uint64_t rate_pps, total, next, sent, unsent, no_buffer, refused, failed, late, worst_late_ns, late_ns, phase_ns;
    uint32_t *lateness_us;
    unsigned size;
    int last_errno;
    /* receiver */
    struct record *records;
    uint64_t capacity, count, overflow, strangers, clock_steps;
    uint32_t queue_drops, rcvbuf;
};

extern struct flow flows[MAX_FLOWS];
extern size_t memory_left;              /* for record arrays of flows to come */

/* The answer that waits to be written: one line, perhaps followed by bulk. */
extern struct reply { uint8_t bytes[LINE_BYTES + BULK_BYTES]; size_t length, done; } pending;

uint64_t clock_ns(int clock);
uint64_t mono_ns(void);
void measure_clock_offset(void);        /* once before receiving */
void check_clock_step(void);            /* now and then while receiving */

struct flow *find_flow(uint64_t id);
struct flow *new_flow(uint32_t id, size_t bytes);           /* NULL: no room */
void drop_flow(struct flow *flow);
void finish_flow(struct flow *flow);
void read_queue_drops(struct flow *flow);
uint64_t scheduled_ns(const struct flow *flow, uint64_t sequence);
uint64_t send_due(uint64_t now);        /* returns when to come back, as does the next one; UINT64_MAX: no need */
uint64_t drain_all(uint64_t now);

void do_request(const char *line);
void count_garbage(void);

/* One ICMP echo may be on its way. */
int ping_fd(void);                      /* -1: none */
uint64_t ping_deadline_ns(void);
void finish_ping(uint64_t now);         /* replies if the answer is here or the time is over */
void forget_ping(void);
