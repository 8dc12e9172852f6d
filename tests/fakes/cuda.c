/* A stand-in for NVIDIA's libcuda.so.1 that tells when CUDA was initialised, and what it would have seen.
 *
 * cuInit is where CUDA reads CUDA_VISIBLE_DEVICES. This one appends a line to the file named by FAKE_CUDA_LOG,
 *
 *   pid <tab> CUDA_VISIBLE_DEVICES=... <tab> CUDA_DEVICE_ORDER=... <tab> CUDA_MPS_PIPE_DIRECTORY=...
 *
 * (a variable that is not set is left out), and finds no GPU, so that TensorFlow goes on with the CPU. It finds one, for
 * handlers that ask for no more than that, where the variable FAKE_CUDA_GONE names a file, whether that exists or not,
 * and the file does not hold the UUID in CUDA_VISIBLE_DEVICES; a test may write it while processes run.
 *
 * With FAKE_GPU_MEMORY, a folder, it finds the GPUs and slices whose whole UUIDs CUDA_VISIBLE_DEVICES lists: those
 * before the first entry that is none, and of slices only the first. Each has 40 GiB, a slice 10. What a process has
 * allocated there, its context included, stands in the file UUID.PID of that folder, which nvml.c reads. The memory
 * itself is the host's, and only as much of it as was written to.
 *
 *   FAKE_CUDA_FAULT       FAULT@UUID for what goes wrong in processes whose first device this is, separated by commas:
 *                           uuid   each device has another UUID than its own
 *                           more   the process sees one device more than it should
 *                           abort  too large an allocation ends the process, instead of an error
 *                           grant  an allocation of more than the device has is granted; to write to it ends the process
 *                           full   no context can be opened, for lack of memory
 *                           init   cuInit fails
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define CUDA_ERROR_INVALID_VALUE 1
#define CUDA_ERROR_OUT_OF_MEMORY 2
#define CUDA_ERROR_NOT_INITIALIZED 3
#define CUDA_ERROR_NO_DEVICE 100
#define CUDA_ERROR_INVALID_DEVICE 101
#define CUDA_ERROR_INVALID_CONTEXT 201
#define CUDA_ERROR_UNKNOWN 999
#define MAX_DEVICES 16
#define MAX_BLOCKS 64
#define MAX_UUID 64
#define GIB (1ULL << 30)
#define CONTEXT (300ULL << 20)

static struct {
    char uuid[MAX_UUID];
    unsigned long long allocated;
    int has_context;
} devices[MAX_DEVICES];

static struct {
    void *address;
    size_t size;
    int device;
} blocks[MAX_BLOCKS];

static int device_count, current = -1;

static void append(char *line, size_t room, const char *name) {
    const char *value = getenv(name);
    size_t used = strlen(line);
    if (value)
        snprintf(line + used, room - used, "\t%s=%s", name, value);
}

/* Whether the GPU that this process may use is one that can be found. */
static int found(void) {
    const char *path = getenv("FAKE_CUDA_GONE"), *uuid = getenv("CUDA_VISIBLE_DEVICES");
    char gone[4096] = "";
    if (!path || !uuid)
        return 0;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        if (read(file, gone, sizeof gone - 1) < 0)
            perror("stand-in libcuda: FAKE_CUDA_GONE");
        close(file);
    }
    return strstr(gone, uuid) == NULL;
}

static int has_fault(const char *fault) {
    const char *next = getenv("FAKE_CUDA_FAULT"), *visible = getenv("CUDA_VISIBLE_DEVICES");
    size_t length = strlen(fault);
    while (next && visible && *next) {
        size_t whole = strcspn(next, ",");
        if (strncmp(next, fault, length) == 0 && next[length] == '@' &&
            strncmp(next + length + 1, visible, whole - length - 1) == 0)
            return 1;
        next += whole + (next[whole] == ',');
    }
    return 0;
}

static int is_slice(const char *uuid) { return strncmp(uuid, "MIG-", 4) == 0; }

/* Reads CUDA_VISIBLE_DEVICES. */
static void find_devices(void) {
    const char *text = getenv("CUDA_VISIBLE_DEVICES");
    device_count = 0;
    while (text && *text && device_count < MAX_DEVICES - 1) {
        size_t length = strcspn(text, ",");
        if ((strncmp(text, "GPU-", 4) != 0 && !is_slice(text)) || length >= MAX_UUID)
            break;
        memset(&devices[device_count], 0, sizeof devices[0]);
        memcpy(devices[device_count].uuid, text, length);
        if (is_slice(devices[device_count++].uuid))
            break;
        text += length + (text[length] == ',');
    }
    if (has_fault("more"))
        snprintf(devices[device_count++].uuid, MAX_UUID, "GPU-00000000-0000-0000-0000-000000000001");
}

API int cuInit(unsigned flags) {
    const char *path = getenv("FAKE_CUDA_LOG");
    (void)flags;
    if (path) {
        char line[4096];
        snprintf(line, sizeof line, "%d", (int)getpid());
        append(line, sizeof line - 1, "CUDA_VISIBLE_DEVICES");
        append(line, sizeof line - 1, "CUDA_DEVICE_ORDER");
        append(line, sizeof line - 1, "CUDA_MPS_PIPE_DIRECTORY");
        strcat(line, "\n");
        /* One write to a file opened for appending: lines of several processes never mix. */
        int log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (log < 0 || write(log, line, strlen(line)) < 0)
            perror("stand-in libcuda: FAKE_CUDA_LOG");
        if (log >= 0)
            close(log);
    }
    if (!getenv("FAKE_GPU_MEMORY"))
        return found() ? 0 : CUDA_ERROR_NO_DEVICE;
    if (has_fault("init"))
        return CUDA_ERROR_UNKNOWN;
    find_devices();
    return device_count > 0 ? 0 : CUDA_ERROR_NO_DEVICE;
}

API int cuDriverGetVersion(int *version) {
    *version = 12090;
    return 0;
}

API int cuGetErrorName(int error, const char **name) {
    switch (error) {
    case CUDA_ERROR_OUT_OF_MEMORY:
        *name = "CUDA_ERROR_OUT_OF_MEMORY";
        return 0;
    case CUDA_ERROR_NO_DEVICE:
        *name = "CUDA_ERROR_NO_DEVICE";
        return 0;
    case CUDA_ERROR_UNKNOWN:
        *name = "CUDA_ERROR_UNKNOWN";
        return 0;
    default:
        *name = NULL;
        return CUDA_ERROR_INVALID_VALUE;
    }
}

API int cuDeviceGetCount(int *count) {
    *count = device_count;
    return device_count > 0 ? 0 : CUDA_ERROR_NOT_INITIALIZED;
}

API int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal >= 0 && ordinal < device_count ? 0 : CUDA_ERROR_INVALID_DEVICE;
}

/* The sixteen octets of a UUID's text. */
static void octets_of(const char *uuid, unsigned char out[16]) {
    const char *next = strchr(uuid, '-') + 1;
    for (int index = 0; index < 16; index++) {
        unsigned octet = 0;
        next += *next == '-';
        sscanf(next, "%2x", &octet);
        out[index] = (unsigned char)octet;
        next += 2;
    }
}

API int cuDeviceGetUuid_v2(unsigned char out[16], int device) {
    if (device < 0 || device >= device_count)
        return CUDA_ERROR_INVALID_DEVICE;
    octets_of(devices[device].uuid, out);
    if (has_fault("uuid"))
        out[15] ^= 1;
    return 0;
}

/* Of a slice this is the UUID of its GPU, which the stand-in does not know. */
API int cuDeviceGetUuid(unsigned char out[16], int device) {
    int result = cuDeviceGetUuid_v2(out, device);
    if (result == 0 && is_slice(devices[device].uuid))
        memset(out, 0, 16);
    return result;
}

static unsigned long long size_of(int device) { return (is_slice(devices[device].uuid) ? 10 : 40) * GIB; }

API int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    if (device < 0 || device >= device_count)
        return CUDA_ERROR_INVALID_DEVICE;
    *bytes = size_of(device);
    return 0;
}

/* Writes down what this process has allocated on a device. */
static int account(int device) {
    char path[4096], text[32];
    snprintf(path, sizeof path, "%s/%s.%d", getenv("FAKE_GPU_MEMORY"), devices[device].uuid, (int)getpid());
    int length = snprintf(text, sizeof text, "%020llu", devices[device].allocated);
    int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    int failed = file < 0 || pwrite(file, text, (size_t)length, 0) != length;
    if (failed)
        perror("stand-in libcuda: FAKE_GPU_MEMORY");
    if (file >= 0)
        close(file);
    return failed ? CUDA_ERROR_UNKNOWN : 0;
}

/* A context is the number of its device, counted from 1. */
API int cuDevicePrimaryCtxRetain(void **context, int device) {
    if (device < 0 || device >= device_count)
        return CUDA_ERROR_INVALID_DEVICE;
    *context = (void *)(uintptr_t)(device + 1);
    if (has_fault("full"))
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (devices[device].has_context)
        return 0;
    devices[device].has_context = 1;
    devices[device].allocated += CONTEXT;
    return account(device);
}

API int cuCtxSetCurrent(void *context) {
    current = (int)(uintptr_t)context - 1;
    return current < device_count ? 0 : CUDA_ERROR_INVALID_CONTEXT;
}

API int cuMemAlloc_v2(uint64_t *address, size_t size) {
    int block = 0;
    if (current < 0)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (size > size_of(current) - devices[current].allocated && !has_fault("grant")) {
        if (has_fault("abort"))
            abort();
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    while (block < MAX_BLOCKS && blocks[block].address)
        block++;
    if (block == MAX_BLOCKS)
        return CUDA_ERROR_OUT_OF_MEMORY;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    blocks[block].address = memory;
    blocks[block].size = size;
    blocks[block].device = current;
    *address = (uint64_t)(uintptr_t)memory;
    devices[current].allocated += size;
    return account(current);
}

API int cuMemFree_v2(uint64_t address) {
    for (int block = 0; block < MAX_BLOCKS; block++) {
        if (!address || (uint64_t)(uintptr_t)blocks[block].address != address)
            continue;
        munmap(blocks[block].address, blocks[block].size);
        blocks[block].address = NULL;
        devices[blocks[block].device].allocated -= blocks[block].size;
        return account(blocks[block].device);
    }
    return CUDA_ERROR_INVALID_VALUE;
}

API int cuMemsetD8_v2(uint64_t address, unsigned char value, size_t size) {
    /* The last page is enough: nobody reads the others, and tests need not take the memory. */
    size_t part = size < 4096 ? size : 4096;
    if (size > size_of(current))
        abort();
    memset((char *)(uintptr_t)address + size - part, value, part);
    return 0;
}

API int cuMemcpyDtoH_v2(void *host, uint64_t address, size_t size) {
    memcpy(host, (const void *)(uintptr_t)address, size);
    return 0;
}
