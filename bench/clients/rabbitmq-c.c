// One round of one queue's traffic on one broker, over rabbitmq-c (librabbitmq), RabbitMQ's C client.
//
// Each publisher has a thread and a connection: so many publishes without a confirm at once, persistent, as fast as possible or at a pace. So has
// each consumer: a prefetch, and an acknowledgement for so many deliveries. The round lasts from the first publish to the last acknowledgement
// and confirm. What is refused, lost, comes twice or out of a publisher's order ends it with an error. Without consumers, the latency is that of
// the confirm. Prints one JSON object.

#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { HEAD = 24, CHANNEL = 1, FRAME_MAX = 131072 };

struct worker {
    pthread_t thread;
    amqp_connection_state_t connection;
    uint64_t number;   // of a publisher
    uint64_t share;    // how many it publishes
    uint64_t *last;    // of a consumer: by publisher, the number behind the last one
    double ended;
};

static struct amqp_connection_info broker;
static const char *queue;
static uint64_t publishers, consumers, messages, size, window_of_confirms, prefetch, ack_every;
static double pace;

static double *latencies;
static atomic_ulong taken;

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("rabbitmq-c: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void check(int status, const char *what) {
    if (status != AMQP_STATUS_OK) fail("%s: %s", what, amqp_error_string2(status));
}

static void answered(amqp_rpc_reply_t reply, const char *what) {
    if (reply.reply_type == AMQP_RESPONSE_NORMAL) return;
    if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION && reply.reply.id == AMQP_CHANNEL_CLOSE_METHOD) {
        amqp_channel_close_t *closed = reply.reply.decoded;
        fail("%s: %d %.*s", what, closed->reply_code, (int)closed->reply_text.len, (char *)closed->reply_text.bytes);
    }
    if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION && reply.reply.id == AMQP_CONNECTION_CLOSE_METHOD) {
        amqp_connection_close_t *closed = reply.reply.decoded;
        fail("%s: %d %.*s", what, closed->reply_code, (int)closed->reply_text.len, (char *)closed->reply_text.bytes);
    }
    fail("%s: %s", what, amqp_error_string2(reply.library_error));
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void sleep_until(double due) {
    struct timespec at = {(time_t)due, (long)((due - (double)(time_t)due) * 1e9)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
}

static amqp_connection_state_t connect_to_broker(void) {
    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = connection ? amqp_tcp_socket_new(connection) : NULL;
    if (!socket) fail("no memory for a connection");
    check(amqp_socket_open(socket, broker.host, broker.port), "cannot connect");
    answered(amqp_login(connection, broker.vhost, 0, FRAME_MAX, 0, AMQP_SASL_METHOD_PLAIN, broker.user, broker.password), "login");
    amqp_channel_open(connection, CHANNEL);
    answered(amqp_get_rpc_reply(connection), "channel.open");
    return connection;
}

static uint64_t get(const unsigned char *body, size_t at) {
    uint64_t value;
    memcpy(&value, body + at, sizeof value);
    return value;
}

// Takes what confirms are there, or waits for one for as long as `wait` says (NULL: until it comes). False when none came in time.
static int take_confirm(struct worker *me, unsigned char *confirmed, uint64_t *low, uint64_t sent, const struct timeval *wait) {
    amqp_frame_t frame;
    amqp_maybe_release_buffers(me->connection);
    int status = amqp_simple_wait_frame_noblock(me->connection, &frame, wait);
    if (status == AMQP_STATUS_TIMEOUT) return 0;
    check(status, "waiting for a confirm");
    if (frame.frame_type == AMQP_FRAME_HEARTBEAT) return 1;
    if (frame.frame_type != AMQP_FRAME_METHOD || frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
        fail("a publish was not confirmed: frame %d, method %x", frame.frame_type, frame.frame_type == AMQP_FRAME_METHOD ? frame.payload.method.id : 0);
    amqp_basic_ack_t *ack = frame.payload.method.decoded;
    uint64_t upto = ack->delivery_tag;
    if (upto == 0 || upto > sent) fail("a confirm of %llu, of %llu published", (unsigned long long)upto, (unsigned long long)sent);
    for (uint64_t tag = ack->multiple ? *low + 1 : upto; tag <= upto; tag++) {
        if (confirmed[tag] && !ack->multiple) fail("%llu was confirmed twice", (unsigned long long)tag);
        confirmed[tag] = 1;
    }
    while (*low < sent && confirmed[*low + 1]) ++*low;
    return 1;
}

static void *publish(void *argument) {
    struct worker *me = argument;
    unsigned char *body = malloc(size), *confirmed = calloc(me->share + 2, 1);
    if (!body || !confirmed) fail("no memory");
    memset(body, 0x61, size);
    memcpy(body, &me->number, sizeof me->number);
    amqp_basic_properties_t properties;
    memset(&properties, 0, sizeof properties);
    properties._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CONTENT_TYPE_FLAG;
    properties.delivery_mode = 2;
    properties.content_type = amqp_cstring_bytes("application/octet-stream");
    uint64_t sent = 0, low = 0;
    const double start = now(), each = pace > 0 ? (double)publishers / pace : 0;
    while (low < me->share) {
        while (sent < me->share && sent - low < window_of_confirms && now() >= start + (double)sent * each) {
            double at = now();
            memcpy(body + 8, &sent, sizeof sent);
            memcpy(body + 16, &at, sizeof at);
            amqp_bytes_t bytes = {size, body};
            check(amqp_basic_publish(me->connection, CHANNEL, amqp_empty_bytes, amqp_cstring_bytes(queue), 0, 0, &properties, bytes), "publish");
            sent++;
        }
        // Until the next is due, what confirms are there is all that is taken; without room for it, the next confirm is waited for.
        const struct timeval nothing = {0, 0}, *wait = NULL;
        if (sent < me->share && sent - low < window_of_confirms) {
            sleep_until(start + (double)sent * each);
            wait = &nothing;
        }
        const uint64_t before = low;
        while (take_confirm(me, confirmed, &low, sent, wait) && (amqp_frames_enqueued(me->connection) || amqp_data_in_buffer(me->connection))) {
        }
        if (consumers == 0 && low > before) {
            double at;
            memcpy(&at, body + 16, sizeof at);
            for (uint64_t number = before; number < low; number++) latencies[atomic_fetch_add(&taken, 1)] = now() - at;
        }
    }
    me->ended = now();
    free(body);
    free(confirmed);
    return NULL;
}

static void *consume(void *argument) {
    struct worker *me = argument;
    uint64_t unacked = 0;
    while (atomic_load(&taken) < messages) {
        amqp_envelope_t delivery;
        struct timeval wait = {0, 2000};
        amqp_maybe_release_buffers(me->connection);
        amqp_rpc_reply_t reply = amqp_consume_message(me->connection, &delivery, &wait, 0);
        if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION && reply.library_error == AMQP_STATUS_TIMEOUT) continue;
        answered(reply, "waiting for a delivery");
        const unsigned char *body = delivery.message.body.bytes;
        if (delivery.message.body.len < HEAD || get(body, 0) >= publishers) fail("a message that nobody sent");
        const uint64_t publisher = get(body, 0), number = get(body, 8);
        if (number < me->last[publisher]) fail("message %llu came behind %llu", (unsigned long long)number, (unsigned long long)me->last[publisher] - 1);
        me->last[publisher] = number + 1;
        double at;
        memcpy(&at, body + 16, sizeof at);
        const uint64_t place = atomic_fetch_add(&taken, 1);
        if (place >= messages) fail("more deliveries than messages");
        latencies[place] = now() - at;
        unacked++;
        if (unacked == ack_every || messages - place - 1 < ack_every * consumers) {
            check(amqp_basic_ack(me->connection, CHANNEL, delivery.delivery_tag, unacked > 1), "ack");
            unacked = 0;
        }
        me->ended = now();
        amqp_destroy_envelope(&delivery);
    }
    return NULL;
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double cpu(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static uint64_t whole(const char *text, const char *name) {
    char *end;
    unsigned long long value = strtoull(text, &end, 10);
    if (end == text || *end) fail("%s: %s is not a whole number", name, text);
    return value;
}

int main(int count, char **arguments) {
    if (count != 11)
        fail("usage: rabbitmq-c AMQP_URL QUEUE PUBLISHERS CONSUMERS MESSAGES SIZE WINDOW PREFETCH ACK_EVERY MESSAGES_PER_SECOND (0: as fast as possible)");
    amqp_default_connection_info(&broker);
    check(amqp_parse_url(arguments[1], &broker), "AMQP_URL");
    queue = arguments[2];
    publishers = whole(arguments[3], "PUBLISHERS");
    consumers = whole(arguments[4], "CONSUMERS");
    messages = whole(arguments[5], "MESSAGES");
    size = whole(arguments[6], "SIZE");
    window_of_confirms = whole(arguments[7], "WINDOW");
    prefetch = whole(arguments[8], "PREFETCH");
    ack_every = whole(arguments[9], "ACK_EVERY");
    pace = strtod(arguments[10], NULL);
    if (size < HEAD) size = HEAD;
    if (!publishers || !messages || !window_of_confirms || !ack_every || prefetch > UINT16_MAX) fail("a number is 0 or too large");
    if (consumers == 0 && window_of_confirms > 1) fail("without consumers WINDOW is 1: what is measured is the confirm of each");

    latencies = calloc(messages, sizeof *latencies);
    struct worker *workers = calloc(publishers + consumers, sizeof *workers);
    if (!latencies || !workers) fail("no memory");
    for (uint64_t n = 0; n < publishers + consumers; n++) {
        struct worker *worker = &workers[n];
        worker->connection = connect_to_broker();
        if (n < publishers) {
            worker->number = n;
            worker->share = messages / publishers + (n < messages % publishers);
            amqp_confirm_select(worker->connection, CHANNEL);
        } else {
            worker->last = calloc(publishers, sizeof *worker->last);
            if (!worker->last) fail("no memory");
            amqp_basic_qos(worker->connection, CHANNEL, 0, (uint16_t)prefetch, 0);
            answered(amqp_get_rpc_reply(worker->connection), "basic.qos");
            amqp_basic_consume(worker->connection, CHANNEL, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
        }
        answered(amqp_get_rpc_reply(worker->connection), n < publishers ? "confirm.select" : "basic.consume");
    }
    const double cpu_before = cpu(), start = now();
    for (uint64_t n = 0; n < publishers + consumers; n++)
        if (pthread_create(&workers[n].thread, NULL, n < publishers ? publish : consume, &workers[n])) fail("no thread");
    double end = start;
    for (uint64_t n = 0; n < publishers + consumers; n++) {
        pthread_join(workers[n].thread, NULL);
        if (workers[n].ended > end) end = workers[n].ended;
    }
    const double used = cpu() - cpu_before;
    if (atomic_load(&taken) != messages) fail("%llu of %llu messages", (unsigned long long)atomic_load(&taken), (unsigned long long)messages);
    qsort(latencies, messages, sizeof *latencies, by_size);
    printf("{\"elapsed_s\":%.6f,\"latency_p50_ms\":%.6f,\"latency_p99_ms\":%.6f,\"cpu_s\":%.6f}\n", end - start,
           latencies[(messages - 1) / 2] * 1e3, latencies[(messages - 1) * 99 / 100] * 1e3, used);
    // The consumers first: RabbitMQ fails a connection that acknowledges to a quorum queue in the moment it is deleted.
    for (uint64_t n = publishers + consumers; n-- > 0;) answered(amqp_connection_close(workers[n].connection, AMQP_REPLY_SUCCESS), "connection.close");
    return 0;
}
