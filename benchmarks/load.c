/* A load generator for the wire protocol (docs/protocol.md), as cheap for the machine as wrk is for HTTP.
 *
 *     cc -O2 -o load load.c -lm              (benchmarks/load.py does this)
 *     load ENDPOINT... [options]
 *
 * It speaks ZeroMQ's protocol (ZMTP 3.1, without encryption) itself, as a DEALER socket does. libzmq would pass each
 * message through a thread of its own, which costs five times as much CPU time with 64 connections.
 *
 * A closed loop keeps a number of requests outstanding, spread over a number of sockets, and sends the next one when an
 * answer arrives. One socket is a client that pipelines; as many sockets as requests are clients that wait for
 * each answer. An open loop (-a) sends at random times, whether or not earlier requests were answered, on the sockets in
 * turn. The latency of a request counts from when it was due, so a late sender hides nothing. Sockets are spread over
 * the endpoints.
 *
 * Each answer must be MT1:ok, have the id of a request outstanding on its socket, and outputs of the right size.
 *
 * Prints one JSON object: rps (good answers a second), p50, p90, p99, p999 and max of their latency in milliseconds,
 * n (good answers in the time measured), seconds, errors, answered (all answers, including the warm-up), lost (requests
 * without an answer) and cpu_s (its own CPU time). Exits with 1 if there were errors or losses, and prints the first
 * error to stderr.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { STALL_S = 10, DRAIN_S = 5, KEPT = 500, ROOM = 100000, TIMER = UINT32_MAX };
enum { MORE = 1, LONG = 2, COMMAND = 4, GREETING = 64, READ = 1 << 16, COPIED = 1 << 14 };

static const char USAGE[] =
    "usage: load ENDPOINT... [-c OUTSTANDING | -a RATE] [-n SOCKETS] [-t SECONDS] [-w SECONDS] [-r REQUESTS]\n"
    "                        [-m MODEL] [-i INPUT] [-s SHAPE] [-o BYTES] [-v] [-T]\n"
    "  -c  requests outstanding, 64\n"
    "  -a  instead: requests a second, as Poisson arrivals\n"
    "  -n  sockets that they are spread over: as many as requests, with -a as many as endpoints\n"
    "  -t  how long to measure, 3\n"
    "  -w  how long to warm up before, 0\n"
    "  -r  stop after this many answers, whatever the time\n"
    "  -m  the model's name, model\n"
    "  -i  its input's name, x; the datatype is FP32\n"
    "  -s  the tensor's dimensions, 1,16\n"
    "  -o  how many bytes all outputs have together, as many as the input\n"
    "  -v  the outputs must be the input's bytes\n"
    "  -T  each request names a trace of its own\n";

static const char TRACED[] = ",\"parameters\":{\"priority\":2,\"traceparent\":"
                             "\"00-00000000000000000000000000000000-0000000000000001-01\"}";

struct request {
    double due;      /* When its latency begins to count. */
    uint64_t id;     /* Its index in the upper half, how often that index was used in the lower: each id is used once. */
    uint32_t socket; /* Where it is outstanding. */
};

struct bytes {
    char *at;
    size_t start, end, room; /* What lies between `start` and `end` is still to be used. */
};

struct peer {
    int descriptor, greeted, open, blocked;
    struct bytes in, out;
    size_t tail; /* Bytes at the end of the tensor that are to be sent after `out`. */
};

static char header[4096], *tensor;
static size_t header_size, tensor_size, outputs_size;
static char *trace; /* Where the header has the digits of a trace; NULL if it has none. */
static int verify, events_of_all;
static struct peer *peers;
static struct request *requests;
static double *latencies;
static uint32_t *unused, unused_count; /* The free indices of `requests` in an open loop. */
static size_t room, waiting, good, errors, answered, limit;
static double rate, begin, end, stop, heard;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *allocate(void *old, size_t count, size_t size) {
    void *memory = realloc(old, count * size);
    if (!memory) die("memory");
    return memory;
}

static void complain(const char *what, const void *text, size_t size) {
    if (!errors++) fprintf(stderr, "load: %s %.*s\n", what, (int)(size < KEPT ? size : KEPT), (const char *)text);
}

/* Makes room for more bytes behind those that are still to be used. */
static char *reserve(struct bytes *bytes, size_t more) {
    if (bytes->start == bytes->end) bytes->start = bytes->end = 0;
    if (bytes->end + more > bytes->room && bytes->start) {
        memmove(bytes->at, bytes->at + bytes->start, bytes->end - bytes->start);
        bytes->end -= bytes->start;
        bytes->start = 0;
    }
    if (bytes->end + more > bytes->room) bytes->at = allocate(bytes->at, bytes->room = 2 * (bytes->end + more), 1);
    return bytes->at + bytes->end;
}

static void append(struct bytes *bytes, const void *data, size_t size) {
    if (!size) return;
    memcpy(reserve(bytes, size), data, size);
    bytes->end += size;
}

static void append_head(struct bytes *out, size_t size, int flags) {
    unsigned char head[9] = {(unsigned char)flags, (unsigned char)size};
    if (size > 255) {
        head[0] |= LONG;
        for (int i = 0; i < 8; i++) head[1 + i] = (unsigned char)((uint64_t)size >> (56 - 8 * i));
    }
    append(out, head, size > 255 ? 9 : 2);
}

static void append_frame(struct bytes *out, const void *data, size_t size) {
    append_head(out, size, MORE);
    append(out, data, size);
}

/* Sends what waits on a socket, as far as the kernel takes it. Nothing is sent before the peer's READY: libzmq refuses
 * messages until it has sent its own. */
static void flush(uint32_t on) {
    struct peer *peer = &peers[on];
    size_t waits = peer->out.end - peer->out.start;
    if (!peer->open || !(waits + peer->tail)) return;
    struct iovec parts[] = {{peer->out.at + peer->out.start, waits}, {tensor + tensor_size - peer->tail, peer->tail}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    ssize_t sent = sendmsg(peer->descriptor, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) die("send");
    size_t count = sent < 0 ? 0 : (size_t)sent, of_tail = count > waits ? count - waits : 0;
    peer->out.start += count - of_tail;
    peer->tail -= of_tail;
    int blocked = peer->out.start < peer->out.end || peer->tail;
    if (blocked == peer->blocked) return;
    struct epoll_event event = {.events = blocked ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.u32 = on};
    if (epoll_ctl(events_of_all, EPOLL_CTL_MOD, peer->descriptor, &event) < 0) die("epoll");
    peer->blocked = blocked;
}

/* Queues a request on a socket; `flush` sends it. */
static void send_request(uint32_t index, uint32_t on, double due) {
    struct request *request = &requests[index];
    struct peer *peer = &peers[on];
    struct bytes *out = &peer->out;
    request->id = (uint64_t)index << 32 | (uint32_t)(request->id + 1);
    request->due = due;
    request->socket = on;
    waiting++;
    append(out, tensor + tensor_size - peer->tail, peer->tail);
    peer->tail = 0;
    append_frame(out, "", 0);
    append_frame(out, "MT1:infer", 9);
    append_frame(out, &request->id, sizeof request->id);
    if (trace) {
        static uint64_t traces;
        char digits[17];
        snprintf(digits, sizeof digits, "%016llx", (unsigned long long)++traces);
        memcpy(trace, digits, 16);
    }
    append_frame(out, header, header_size);
    append_head(out, tensor_size, 0);
    if (tensor_size <= COPIED) {
        append(out, tensor, tensor_size);
    } else {
        peer->tail = tensor_size;
        flush(on);
    }
}

/* The size of the frame that begins at `at`, and of what precedes its content; 0 if that has not arrived. */
static size_t frame_head(const char *at, const char *end, size_t *size) {
    const unsigned char *head = (const unsigned char *)at;
    if (end - at < 2) return 0;
    *size = head[1];
    if (!(head[0] & LONG)) return 2;
    if (end - at < 9) return 0;
    *size = 0;
    for (int i = 1; i < 9; i++) *size = *size << 8 | head[i];
    return 9;
}

/* The bytes of the message, or command, at the beginning of what was received; 0 if its end has not arrived. */
static size_t whole_message(const struct bytes *in) {
    const char *begin = in->at + in->start, *end = in->at + in->end, *at = begin;
    for (size_t size, head; (head = frame_head(at, end, &size)) && size <= (size_t)(end - at) - head;) {
        int last = !(*at & MORE);
        at += head + size;
        if (last) return (size_t)(at - begin);
    }
    return 0;
}

/* Reads from a socket until it holds a whole message. Returns the message's size; 0 if it has not arrived. */
static size_t next_message(uint32_t on) {
    struct peer *peer = &peers[on];
    struct bytes *in = &peer->in;
    for (;;) {
        if (!peer->greeted && in->end - in->start >= GREETING) {
            if (in->at[in->start] != '\xff' || in->at[in->start + 10] < 3) errno = EPROTO, die("greeting");
            in->start += GREETING;
            peer->greeted = 1;
        }
        size_t size = peer->greeted ? whole_message(in) : 0;
        if (size && in->at[in->start] & COMMAND) {
            in->start += size; /* READY; the daemon sends no heartbeats while messages flow. */
            peer->open = 1;
            flush(on);
            continue;
        }
        if (size) return size;
        size_t room = in->end - in->start > READ ? in->end - in->start : READ;
        ssize_t got = recv(peer->descriptor, reserve(in, room), room, MSG_DONTWAIT);
        if (got == 0) errno = ECONNRESET;
        if (got <= 0 && errno != EAGAIN && errno != EINTR) die("receive");
        if (got <= 0) return 0;
        in->end += (size_t)got;
    }
}

/* Reads one answer of a socket. Returns its request's index; -1 if there is none; -2 if it answers no request. */
static int64_t receive(uint32_t on, int *is_good) {
    struct bytes *in = &peers[on].in;
    size_t left = next_message(on);
    if (!left) return -1;
    char kind[16], error[KEPT];
    size_t kind_size = 0, error_size = 0, bytes = 0;
    uint64_t id = UINT64_MAX;
    int same = 1;
    const char *at = in->at + in->start, *end = at + left;
    in->start += left;
    for (int part = 0; at < end; part++) {
        size_t size = 0;
        const char *data = at + frame_head(at, end, &size);
        if (part == 1) memcpy(kind, data, kind_size = size < sizeof kind ? size : sizeof kind);
        if (part == 2 && size == sizeof id) memcpy(&id, data, sizeof id);
        if (part == 3) memcpy(error, data, error_size = size < KEPT ? size : KEPT);
        if (part > 3) {
            same = same && (!verify || (bytes + size <= tensor_size && !memcmp(data, tensor + bytes, size)));
            bytes += size;
        }
        at = data + size;
    }
    answered++;
    *is_good = 0;
    uint64_t index = id >> 32;
    if (index >= room || requests[index].id != id || requests[index].socket != on) {
        complain("an answer to no request:", kind, kind_size);
        return -2;
    }
    requests[index].socket = UINT32_MAX; /* A second answer counts as an answer to no request. */
    waiting--;
    if (kind_size != 6 || memcmp(kind, "MT1:ok", 6))
        complain("an error:", error, error_size);
    else if (bytes != outputs_size || !same)
        complain("wrong outputs:", error, error_size);
    else
        *is_good = 1;
    return (int64_t)index;
}

static void keep(double latency) {
    static size_t size;
    if (good == size) latencies = allocate(latencies, size = size ? 2 * size : 65536, sizeof *latencies);
    latencies[good++] = latency;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(double share) { return good ? latencies[(size_t)(share * (good - 1) + 0.5)] * 1e3 : 0; }

static void make_request(const char *model, const char *input, const char *shape, int traced) {
    size_t elements = 1;
    for (const char *at = shape; *at;) {
        char *end;
        long dimension = strtol(at, &end, 10);
        if (end == at || dimension < 0 || (*end && *end != ',')) {
            fprintf(stderr, "load: not a shape: %s\n", shape);
            exit(2);
        }
        elements *= (size_t)dimension;
        at = *end ? end + 1 : end;
    }
    tensor_size = elements * sizeof(float);
    tensor = allocate(NULL, elements + 1, sizeof(float));
    for (size_t i = 0; i < elements; i++) ((float *)tensor)[i] = (float)(i % 97) / 97;
    /* The same bytes as multitower.wire.infer_header; any equal JSON would do. */
    int size = snprintf(header, sizeof header,
                        "{\"model_name\":\"%s\",\"inputs\":[{\"name\":\"%s\",\"datatype\":\"FP32\",\"shape\":[%s]}]%s}",
                        model, input, shape, traced ? TRACED : "");
    if (size < 0 || (size_t)size >= sizeof header) {
        fprintf(stderr, "load: the names are too long\n");
        exit(2);
    }
    header_size = (size_t)size;
    if (traced) trace = strstr(header, "\"00-") + 4;
}

/* Reads all answers of a socket; a closed loop sends a request for each. */
static void read_answers(uint32_t on) {
    int is_good;
    for (int64_t index; (index = receive(on, &is_good)) != -1;) {
        double time = heard = now();
        if (index < 0) continue;
        double due = requests[index].due;
        /* An open loop counts all requests that were due, however late the answer: else the slowest would be missing. */
        if (is_good && (rate > 0 ? due >= begin : time >= begin && time < end)) keep(time - due);
        if (limit && answered >= limit && time < end) stop = (end = time) + DRAIN_S;
        if (rate > 0)
            unused[unused_count++] = (uint32_t)index;
        else if (time < end)
            send_request((uint32_t)index, on, now());
    }
    flush(on);
}

/* Connects to ipc://PATH or tcp://HOST:PORT; an abstract path begins with @. */
static int connect_to(const char *endpoint) {
    int made = -1, yes = 1;
    if (!strncmp(endpoint, "ipc://", 6)) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        size_t size = strlen(endpoint + 6);
        if (size >= sizeof address.sun_path) errno = ENAMETOOLONG, die(endpoint);
        memcpy(address.sun_path, endpoint + 6, size);
        if (*address.sun_path == '@') *address.sun_path = 0;
        made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        /* The size of an abstract name counts. */
        socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size + (*address.sun_path ? 1 : 0));
        if (made < 0 || connect(made, (struct sockaddr *)&address, length) < 0) die(endpoint);
        return made;
    }
    char host[256];
    const char *port = strrchr(endpoint, ':');
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    if (strncmp(endpoint, "tcp://", 6) || port < endpoint + 6 || (size_t)(port - endpoint) - 6 >= sizeof host)
        errno = EINVAL, die(endpoint);
    int bracket = endpoint[6] == '[';
    snprintf(host, sizeof host, "%.*s", (int)(port - endpoint) - 6 - 2 * bracket, endpoint + 6 + bracket);
    if (getaddrinfo(host, port + 1, &hints, &found)) errno = EHOSTUNREACH, die(endpoint);
    for (struct addrinfo *each = found; each && made < 0; each = each->ai_next) {
        made = socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (made >= 0 && connect(made, each->ai_addr, each->ai_addrlen) < 0) close(made), made = -1;
    }
    if (made < 0) die(endpoint);
    freeaddrinfo(found);
    setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return made;
}

/* Connects the sockets and watches them with epoll. */
static void connect_all(uint32_t count, char **endpoints, int endpoint_count) {
    static const char ready[] = "\4\51\5READY\13Socket-Type\0\0\0\6DEALER\10Identity\0\0\0";
    char opening[GREETING + sizeof ready] = "\xff\0\0\0\0\0\0\0\0\x7f\3\1NULL";
    memcpy(opening + GREETING, ready, sizeof ready);
    events_of_all = epoll_create1(EPOLL_CLOEXEC);
    peers = allocate(NULL, count, sizeof *peers);
    memset(peers, 0, count * sizeof *peers);
    for (uint32_t i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        peers[i].descriptor = connect_to(endpoints[i % (uint32_t)endpoint_count]);
        if (epoll_ctl(events_of_all, EPOLL_CTL_ADD, peers[i].descriptor, &event) < 0) die("epoll");
        if (send(peers[i].descriptor, opening, sizeof opening, MSG_NOSIGNAL) != sizeof opening) die(endpoints[0]);
    }
}

/* The time between two arrivals: exponentially distributed, the same sequence in each run. */
static double pause_between(void) { return -log(1 - drand48()) / rate; }

static void set_timer(int timer, double at) {
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)at, .tv_nsec = (long)(fmod(at, 1) * 1e9)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static void report(double seconds) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double micros = usage.ru_utime.tv_usec + usage.ru_stime.tv_usec, sum = 0;
    for (size_t i = 0; i < good; i++) sum += latencies[i];
    qsort(latencies, good, sizeof *latencies, compare);
    printf("{\"rps\": %.1f, \"mean\": %.4f, ", seconds > 0 ? good / seconds : 0, good ? sum / good * 1e3 : 0);
    printf("\"p50\": %.4f, \"p90\": %.4f, \"p99\": %.4f, \"p999\": %.4f, \"max\": %.4f, ", percentile(.5),
           percentile(.9), percentile(.99), percentile(.999), percentile(1));
    printf("\"n\": %zu, \"seconds\": %.3f, ", good, seconds > 0 ? seconds : 0);
    printf("\"errors\": %zu, \"answered\": %zu, \"lost\": %zu, ", errors, answered, waiting);
    printf("\"cpu_s\": %.3f, \"waits\": %ld}\n", usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + micros * 1e-6,
           usage.ru_nvcsw);
}

int main(int argc, char **argv) {
    const char *model = "model", *input = "x", *shape = "1,16";
    long outstanding = 64, count = 0, outputs = -1;
    double seconds = 3, warm = 0;
    int traced = 0;
    for (int option; (option = getopt(argc, argv, "c:a:n:t:w:r:m:i:s:o:vT")) != -1;) switch (option) {
            case 'c': outstanding = atol(optarg); break;
            case 'a': rate = atof(optarg); break;
            case 'n': count = atol(optarg); break;
            case 't': seconds = atof(optarg); break;
            case 'w': warm = atof(optarg); break;
            case 'r': limit = strtoul(optarg, NULL, 10); break;
            case 'm': model = optarg; break;
            case 'i': input = optarg; break;
            case 's': shape = optarg; break;
            case 'o': outputs = atol(optarg); break;
            case 'v': verify = 1; break;
            case 'T': traced = 1; break;
            default: fputs(USAGE, stderr); return 2;
        }
    int endpoints = argc - optind;
    if (rate > 0) outstanding = ROOM;
    if (count == 0) count = rate > 0 ? endpoints : outstanding;
    if (endpoints < 1 || outstanding < 1 || count < 1 || count > outstanding || seconds <= 0 || warm < 0 || rate < 0) {
        fputs(USAGE, stderr);
        return 2;
    }
    make_request(model, input, shape, traced);
    outputs_size = outputs < 0 ? tensor_size : (size_t)outputs;
    connect_all((uint32_t)count, argv + optind, endpoints);
    room = (size_t)outstanding;
    requests = allocate(NULL, room, sizeof *requests);
    memset(requests, 0, room * sizeof *requests);
    unused = allocate(NULL, room, sizeof *unused);

    uint32_t turn = 0;
    double due = heard = now();
    begin = due + warm;
    end = begin + seconds;
    stop = end + DRAIN_S;
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (rate > 0) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = TIMER};
        epoll_ctl(events_of_all, EPOLL_CTL_ADD, timer, &event);
        while (unused_count < room) unused[unused_count] = unused_count, unused_count++;
        set_timer(timer, due += pause_between());
    } else {
        for (long i = 0; i < outstanding; i++) send_request((uint32_t)i, (uint32_t)(i % count), now());
        for (long i = 0; i < count; i++) flush((uint32_t)i);
    }
    struct epoll_event events[256];
    while (now() < stop && (waiting || (rate > 0 && now() < end))) {
        int ready = epoll_wait(events_of_all, events, 256, 1000);
        if (ready < 0 && errno != EINTR) die("epoll");
        for (int e = 0; e < ready; e++) {
            if (events[e].data.u32 != TIMER) {
                read_answers(events[e].data.u32);
                continue;
            }
            for (; due <= now() && due < end; due += pause_between(), turn++) {
                uint32_t on = turn % (uint32_t)count;
                if (unused_count)
                    send_request(unused[--unused_count], on, due);
                else
                    complain("too many requests are outstanding", "", 0);
                flush(on);
            }
            if (due < end) set_timer(timer, due);
        }
        double time = now();
        if (waiting && time - heard > STALL_S && time < end) {
            fprintf(stderr, "load: %s did not answer for %d s\n", argv[optind], STALL_S);
            stop = end = time;
        }
    }
    report(end - begin);
    if (waiting) fprintf(stderr, "load: %zu requests were not answered\n", waiting);
    return errors || waiting ? 1 : 0;
}
