/* A closed-loop load generator for the wire protocol (docs/protocol.md), as cheap for the machine as wrk is for HTTP.
 *
 *     cc -O2 -o load load.c -lzmq        (Debian: libzmq3-dev; benchmarks/load.py does this)
 *     load ENDPOINT [options]
 *
 * It keeps a number of requests outstanding, spread over a number of DEALER sockets, and sends the next one when an
 * answer arrives: one socket is a client that pipelines, as many sockets as requests are clients that wait. Each answer
 * must be MT1:ok, carry the id of a request that is outstanding on that socket, and have outputs of the right size.
 *
 * Prints one JSON object: rps (good answers a second), p50, p90, p99, p999 and max of their latency in milliseconds,
 * n (good answers while it measured), seconds, errors, answered (all, with the warm-up), lost (never answered) and
 * cpu_s (its own CPU time). Exits with 1 if there were errors or losses: what the first was is told on stderr.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { STALL_S = 10, DRAIN_S = 5, KEPT = 500 };

static const char USAGE[] =
    "usage: load ENDPOINT [-c OUTSTANDING] [-n SOCKETS] [-t SECONDS] [-w SECONDS] [-r REQUESTS] [-m MODEL] [-i INPUT]\n"
    "                     [-s SHAPE] [-o BYTES] [-v]\n"
    "  -c  requests outstanding, 64\n"
    "  -n  sockets that they are spread over, as many as requests\n"
    "  -t  how long to measure, 3\n"
    "  -w  how long to warm up before, 0\n"
    "  -r  stop after this many answers, whatever the time\n"
    "  -m  the model's name, model\n"
    "  -i  its input's name, x; the datatype is FP32\n"
    "  -s  the tensor's dimensions, 1,16\n"
    "  -o  how many bytes all outputs have together, as many as the input\n"
    "  -v  the outputs must be the input's bytes\n";

struct request {
    double sent;
    uint64_t id; /* Its index in the upper half, how often that has been used in the lower: an answer fits once. */
};

static char header[4096], *tensor;
static size_t header_size, tensor_size, outputs_size;
static int verify;
static struct request* requests;
static double* latencies;
static size_t good, room, errors, answered;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char* what) {
    fprintf(stderr, "load: %s: %s\n", what, zmq_strerror(zmq_errno()));
    exit(1);
}

static void* allocate(void* old, size_t count, size_t size) {
    void* memory = realloc(old, count * size);
    if (!memory) die("memory");
    return memory;
}

static void complain(const char* what, const void* text, size_t size) {
    if (!errors++) fprintf(stderr, "load: %s %.*s\n", what, (int)(size < KEPT ? size : KEPT), (const char*)text);
}

static void ask(void* socket, uint32_t index) {
    struct request* request = &requests[index];
    request->id = (uint64_t)index << 32 | (uint32_t)(request->id + 1);
    request->sent = now();
    if (zmq_send(socket, "", 0, ZMQ_SNDMORE) < 0 || zmq_send(socket, "MT1:infer", 9, ZMQ_SNDMORE) < 0 ||
        zmq_send(socket, &request->id, sizeof request->id, ZMQ_SNDMORE) < 0 ||
        zmq_send(socket, header, header_size, ZMQ_SNDMORE) < 0 || zmq_send_const(socket, tensor, tensor_size, 0) < 0)
        die("send");
}

/* Reads one answer. Its request's index; -1: nothing to read; -2: an answer to no request of this socket. */
static int64_t receive(void* socket, uint32_t first, uint32_t step, uint32_t outstanding, int* is_good) {
    char kind[16], error[KEPT];
    size_t kind_size = 0, error_size = 0, bytes = 0;
    uint64_t id = UINT64_MAX;
    int more = 1, same = 1;
    for (int part = 0; more; part++) {
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, socket, ZMQ_DONTWAIT) < 0) {
            if (zmq_errno() != EAGAIN) die("receive");
            return -1; /* Messages arrive whole: this can only be the first part. */
        }
        const char* data = zmq_msg_data(&frame);
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
    if (index >= outstanding || index % step != first || requests[index].id != id) {
        complain("an answer to no request:", kind, kind_size);
        return -2;
    }
    if (kind_size != 6 || memcmp(kind, "MT1:ok", 6))
        complain("an error:", error, error_size);
    else if (bytes != outputs_size || !same)
        complain("wrong outputs:", error, error_size);
    else
        *is_good = 1;
    return (int64_t)index;
}

static int compare(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

static double percentile(double share) { return good ? latencies[(size_t)(share * (good - 1) + 0.5)] * 1e3 : 0; }

static void make_request(const char* model, const char* input, const char* shape) {
    size_t elements = 1;
    for (const char* at = shape; *at;) {
        char* end;
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
    for (size_t i = 0; i < elements; i++) ((float*)tensor)[i] = (float)(i % 97) / 97;
    /* As multitower.wire.infer_header writes it; the answer is the same for any spelling. */
    int size = snprintf(header, sizeof header,
                        "{\"model_name\":\"%s\",\"inputs\":[{\"name\":\"%s\",\"datatype\":\"FP32\",\"shape\":[%s]}]}",
                        model, input, shape);
    if (size < 0 || (size_t)size >= sizeof header) {
        fprintf(stderr, "load: the names are too long\n");
        exit(2);
    }
    header_size = (size_t)size;
}

int main(int argc, char** argv) {
    const char *model = "model", *input = "x", *shape = "1,16";
    long outstanding = 64, count = 0, limit = 0, outputs = -1;
    double seconds = 3, warm = 0;
    for (int option; (option = getopt(argc, argv, "c:n:t:w:r:m:i:s:o:v")) != -1;) switch (option) {
            case 'c': outstanding = atol(optarg); break;
            case 'n': count = atol(optarg); break;
            case 't': seconds = atof(optarg); break;
            case 'w': warm = atof(optarg); break;
            case 'r': limit = atol(optarg); break;
            case 'm': model = optarg; break;
            case 'i': input = optarg; break;
            case 's': shape = optarg; break;
            case 'o': outputs = atol(optarg); break;
            case 'v': verify = 1; break;
            default: fputs(USAGE, stderr); return 2;
        }
    if (count == 0) count = outstanding;
    if (argc - optind != 1 || outstanding < 1 || count < 1 || count > outstanding || seconds <= 0 || warm < 0) {
        fputs(USAGE, stderr);
        return 2;
    }
    make_request(model, input, shape);
    outputs_size = outputs < 0 ? tensor_size : (size_t)outputs;

    void *context = zmq_ctx_new(), **sockets = allocate(NULL, count, sizeof *sockets);
    zmq_ctx_set(context, ZMQ_MAX_SOCKETS, (int)count + 1);
    /* Each socket's descriptor in one epoll, not zmq_poll: that asks every socket at every turn. */
    int poll = epoll_create1(EPOLL_CLOEXEC), none = 0;
    for (uint32_t i = 0; i < count; i++) {
        int descriptor;
        size_t size = sizeof descriptor;
        struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = i};
        if (!(sockets[i] = zmq_socket(context, ZMQ_DEALER))) die("socket");
        zmq_setsockopt(sockets[i], ZMQ_LINGER, &none, sizeof none);
        zmq_setsockopt(sockets[i], ZMQ_SNDHWM, &none, sizeof none);
        zmq_setsockopt(sockets[i], ZMQ_RCVHWM, &none, sizeof none);
        if (zmq_connect(sockets[i], argv[optind]) < 0) die(argv[optind]);
        if (zmq_getsockopt(sockets[i], ZMQ_FD, &descriptor, &size) < 0) die("ZMQ_FD");
        if (epoll_ctl(poll, EPOLL_CTL_ADD, descriptor, &event) < 0) die("epoll");
    }
    requests = allocate(NULL, outstanding, sizeof *requests);
    memset(requests, 0, outstanding * sizeof *requests);

    double begin = now() + warm, end = begin + seconds, stop = end + DRAIN_S, heard = now(), time = heard;
    for (long i = 0; i < outstanding; i++) ask(sockets[i % count], (uint32_t)i);
    long waiting = outstanding;
    struct epoll_event events[256];
    /* A socket's first events may lie before its descriptor was watched: look at each once. */
    for (uint32_t fresh = 0; waiting && time < stop;) {
        int ready = 0;
        if (fresh < count)
            events[ready++].data.u32 = fresh++;
        else if ((ready = epoll_wait(poll, events, 256, 1000)) < 0 && errno != EINTR)
            die("epoll");
        for (int e = 0; e < ready; e++) {
            uint32_t i = events[e].data.u32;
            int is_good;
            /* The descriptor tells only of what is new: read until nothing is left, after the last send. */
            for (int64_t index;
                 (index = receive(sockets[i], i, (uint32_t)count, (uint32_t)outstanding, &is_good)) != -1;) {
                heard = time = now();
                if (index < 0) continue;
                if (is_good && time >= begin && time < end) {
                    if (good == room)
                        latencies = allocate(latencies, room = room ? 2 * room : 65536, sizeof *latencies);
                    latencies[good++] = time - requests[index].sent;
                }
                if (limit && answered >= (size_t)limit && time < end) stop = (end = time) + DRAIN_S;
                if (time < end)
                    ask(sockets[i], (uint32_t)index);
                else {
                    requests[index].id = UINT64_MAX;
                    waiting--;
                }
            }
        }
        time = now();
        if (time - heard > STALL_S && time < end) {
            fprintf(stderr, "load: %s did not answer for %d s\n", argv[optind], STALL_S);
            stop = end = time;
        }
    }

    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu =
        usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    double measured = end > begin ? end - begin : 0;
    qsort(latencies, good, sizeof *latencies, compare);
    printf(
        "{\"rps\": %.1f, \"p50\": %.4f, \"p90\": %.4f, \"p99\": %.4f, \"p999\": %.4f, \"max\": %.4f, \"n\": %zu, "
        "\"seconds\": %.3f, \"errors\": %zu, \"answered\": %zu, \"lost\": %ld, \"cpu_s\": %.3f}\n",
        measured > 0 ? good / measured : 0, percentile(.5), percentile(.9), percentile(.99), percentile(.999),
        percentile(1), good, measured, errors, answered, waiting, cpu);
    if (waiting) fprintf(stderr, "load: %ld requests were not answered\n", waiting);
    for (long i = 0; i < count; i++) zmq_close(sockets[i]);
    zmq_ctx_term(context);
    return errors || waiting ? 1 : 0;
}
