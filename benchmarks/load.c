/* A load generator for the wire protocol (docs/protocol.md), as cheap for the machine as wrk is for HTTP.
 *
 *     cc -O2 -o load load.c -lzmq -lm        (Debian: libzmq3-dev; benchmarks/load.py does this)
 *     load ENDPOINT... [options]
 *
 * A closed loop keeps a number of requests outstanding, spread over a number of DEALER sockets, and sends the next one
 * when an answer arrives. One socket is a client that pipelines; as many sockets as requests are clients that wait for
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
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { STALL_S = 10, DRAIN_S = 5, KEPT = 500, ROOM = 100000, TIMER = UINT32_MAX };

static const char USAGE[] =
    "usage: load ENDPOINT... [-c OUTSTANDING | -a RATE] [-n SOCKETS] [-t SECONDS] [-w SECONDS] [-r REQUESTS]\n"
    "                        [-m MODEL] [-i INPUT] [-s SHAPE] [-o BYTES] [-v]\n"
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
    "  -v  the outputs must be the input's bytes\n";

struct request {
    double due;      /* When its latency begins to count. */
    uint64_t id;     /* Its index in the upper half, how often that index was used in the lower: each id is used once. */
    uint32_t socket; /* Where it is outstanding. */
};

static char header[4096], *tensor;
static size_t header_size, tensor_size, outputs_size;
static int verify;
static void **sockets;
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
    fprintf(stderr, "load: %s: %s\n", what, zmq_strerror(zmq_errno()));
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

static void send_request(uint32_t index, uint32_t on, double due) {
    struct request *request = &requests[index];
    void *socket = sockets[on];
    request->id = (uint64_t)index << 32 | (uint32_t)(request->id + 1);
    request->due = due;
    request->socket = on;
    waiting++;
    if (zmq_send(socket, "", 0, ZMQ_SNDMORE) < 0 || zmq_send(socket, "MT1:infer", 9, ZMQ_SNDMORE) < 0 ||
        zmq_send(socket, &request->id, sizeof request->id, ZMQ_SNDMORE) < 0 ||
        zmq_send(socket, header, header_size, ZMQ_SNDMORE) < 0 || zmq_send_const(socket, tensor, tensor_size, 0) < 0)
        die("send");
}

/* Reads one answer of a socket. Returns its request's index; -1 if there is none; -2 if it answers no request. */
static int64_t receive(uint32_t on, int *is_good) {
    char kind[16], error[KEPT];
    size_t kind_size = 0, error_size = 0, bytes = 0;
    uint64_t id = UINT64_MAX;
    int more = 1, same = 1;
    for (int part = 0; more; part++) {
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, sockets[on], ZMQ_DONTWAIT) < 0) {
            if (zmq_errno() != EAGAIN) die("receive");
            return -1; /* Messages arrive whole, so this is the first part. */
        }
        const char *data = zmq_msg_data(&frame);
        size_t size = zmq_msg_size(&frame);
        if (part == 1) memcpy(kind, data, kind_size = size < sizeof kind ? size : sizeof kind);
        if (part == 2 && size == sizeof id) memcpy(&id, data, sizeof id);
        if (part == 3) memcpy(error, data, error_size = size < KEPT ? size : KEPT);
        if (part > 3) {
            same = same && (!verify || (bytes + size <= tensor_size && !memcmp(data, tensor + bytes, size)));
            bytes += size;
        }
        more = zmq_msg_more(&frame);
        zmq_msg_close(&frame);
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

static void make_request(const char *model, const char *input, const char *shape) {
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
                        "{\"model_name\":\"%s\",\"inputs\":[{\"name\":\"%s\",\"datatype\":\"FP32\",\"shape\":[%s]}]}",
                        model, input, shape);
    if (size < 0 || (size_t)size >= sizeof header) {
        fprintf(stderr, "load: the names are too long\n");
        exit(2);
    }
    header_size = (size_t)size;
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
}

/* Connects the sockets and watches their descriptors with epoll; zmq_poll would check every socket in every turn. */
static int connect_all(uint32_t count, char **endpoints, int endpoint_count) {
    void *context = zmq_ctx_new();
    int poll = epoll_create1(EPOLL_CLOEXEC), none = 0;
    zmq_ctx_set(context, ZMQ_MAX_SOCKETS, (int)count + 1);
    sockets = allocate(NULL, count, sizeof *sockets);
    for (uint32_t i = 0; i < count; i++) {
        const char *endpoint = endpoints[i % endpoint_count];
        int descriptor;
        size_t size = sizeof descriptor;
        struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = i};
        if (!(sockets[i] = zmq_socket(context, ZMQ_DEALER))) die("socket");
        zmq_setsockopt(sockets[i], ZMQ_LINGER, &none, sizeof none);
        zmq_setsockopt(sockets[i], ZMQ_SNDHWM, &none, sizeof none);
        zmq_setsockopt(sockets[i], ZMQ_RCVHWM, &none, sizeof none);
        if (zmq_connect(sockets[i], endpoint) < 0) die(endpoint);
        if (zmq_getsockopt(sockets[i], ZMQ_FD, &descriptor, &size) < 0) die("ZMQ_FD");
        if (epoll_ctl(poll, EPOLL_CTL_ADD, descriptor, &event) < 0) die("epoll");
    }
    return poll;
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
    for (int option; (option = getopt(argc, argv, "c:a:n:t:w:r:m:i:s:o:v")) != -1;) switch (option) {
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
            default: fputs(USAGE, stderr); return 2;
        }
    int endpoints = argc - optind;
    if (rate > 0) outstanding = ROOM;
    if (count == 0) count = rate > 0 ? endpoints : outstanding;
    if (endpoints < 1 || outstanding < 1 || count < 1 || count > outstanding || seconds <= 0 || warm < 0 || rate < 0) {
        fputs(USAGE, stderr);
        return 2;
    }
    make_request(model, input, shape);
    outputs_size = outputs < 0 ? tensor_size : (size_t)outputs;
    int poll = connect_all((uint32_t)count, argv + optind, endpoints);
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
        epoll_ctl(poll, EPOLL_CTL_ADD, timer, &event);
        while (unused_count < room) unused[unused_count] = unused_count, unused_count++;
        set_timer(timer, due += pause_between());
    } else {
        for (long i = 0; i < outstanding; i++) send_request((uint32_t)i, (uint32_t)(i % count), now());
    }
    struct epoll_event events[256];
    /* A socket may have had events before its descriptor was watched: read each socket once. */
    for (uint32_t fresh = 0; now() < stop && (waiting || (rate > 0 && now() < end));) {
        int ready = 0;
        if (fresh < count)
            events[ready++].data.u32 = fresh++;
        else if ((ready = epoll_wait(poll, events, 256, 1000)) < 0 && errno != EINTR)
            die("epoll");
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
                read_answers(on); /* The descriptor reports only new events, and sending may have received something already. */
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
