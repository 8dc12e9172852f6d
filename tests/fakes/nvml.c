/* A stand-in for NVIDIA's libnvidia-ml.so.1: what the real Python bindings call to list GPUs.
 *
 * The variables below steer it; they are read at every call, so that a test may change its mind.
 *
 *   FAKE_NVML_UUIDS    the GPUs' UUIDs, separated by commas, at most 16 (default: the four below)
 *   FAKE_NVML_COUNT    how many of them there are (default: all)
 *   FAKE_NVML_FAILURE  the number of the error with which nvmlInit fails, such as 9: driver not loaded
 *   FAKE_NVML_LOST     the index of a GPU that answers "GPU is lost"
 *   FAKE_NVML_SPLIT    the index of a GPU in MIG mode
 *   FAKE_NVML_SHARED   the index of a GPU that has no memory of its own
 *   FAKE_NVML_REVERSED set: the GPUs are enumerated from the highest PCI address to the lowest
 *
 * The structures are those of nvml.h; no header of NVIDIA's is needed to build this.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#define MAX_GPUS 16
#define GIB (1024ULL * 1024 * 1024)

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    INSUFFICIENT_SIZE = 7,
    GPU_IS_LOST = 15,
    ARGUMENT_VERSION_MISMATCH = 25,
};

typedef struct {
    int number;
} gpu_t;

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_info_t;

typedef struct {
    unsigned long long total, free, used;
} memory_t;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} memory_v2_t;

/* The first two begin alike. */
static const char *DEFAULT_UUIDS =
    "GPU-8f3a1c02-5b7e-4d11-9a60-0c1d2e3f4a5b,"
    "GPU-8f3a9d47-1c2b-4e5f-8a90-b1c2d3e4f506,"
    "GPU-2e6b7710-93af-4c08-b5d4-71e8f0a9c3b2,"
    "GPU-c40d55e9-0f6a-47b3-8e21-d9a8b7c6e5f4";

static gpu_t gpus[MAX_GPUS];
static int references;

/* The number in a variable, or `otherwise`. */
static int setting(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text && *text ? atoi(text) : otherwise;
}

/* Copies the UUID of GPU `wanted` to `out` (when there is room) and returns how many UUIDs there are. */
static int uuid_of(int wanted, char *out, size_t room) {
    const char *text = getenv("FAKE_NVML_UUIDS");
    int number = 0;
    for (text = text ? text : DEFAULT_UUIDS; *text; number++) {
        size_t length = strcspn(text, ",");
        if (number == wanted && length < room) {
            memcpy(out, text, length);
            out[length] = 0;
        }
        text += length + (text[length] == ',');
    }
    return number;
}

static int gpu_count(void) {
    int listed = uuid_of(-1, NULL, 0), count = setting("FAKE_NVML_COUNT", listed);
    if (count > listed)
        count = listed;
    return count > MAX_GPUS ? MAX_GPUS : count;
}

API int nvmlInitWithFlags(unsigned flags) {
    int failure = setting("FAKE_NVML_FAILURE", SUCCESS);
    (void)flags;
    if (failure == SUCCESS)
        references++;
    return failure;
}

API int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

API int nvmlShutdown(void) {
    if (references == 0)
        return UNINITIALIZED;
    references--;
    return SUCCESS;
}

API const char *nvmlErrorString(int result) {
    static char text[64];
    snprintf(text, sizeof text, "stand-in error %d", result);
    return text;
}

API int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    if (references == 0)
        return UNINITIALIZED;
    return snprintf(version, length, "999.0") < (int)length ? SUCCESS : INSUFFICIENT_SIZE;
}

API int nvmlDeviceGetCount_v2(unsigned *count) {
    if (references == 0)
        return UNINITIALIZED;
    *count = gpu_count();
    return SUCCESS;
}

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu_t **gpu) {
    if (references == 0)
        return UNINITIALIZED;
    int count = gpu_count();
    if (index >= (unsigned)count)
        return INVALID_ARGUMENT;
    if (setting("FAKE_NVML_LOST", -1) == (int)index)
        return GPU_IS_LOST;
    int number = getenv("FAKE_NVML_REVERSED") ? count - 1 - (int)index : (int)index;
    gpus[number].number = number;
    *gpu = &gpus[number];
    return SUCCESS;
}

API int nvmlDeviceGetUUID(gpu_t *gpu, char *uuid, unsigned length) {
    *uuid = 0;
    uuid_of(gpu->number, uuid, length);
    return *uuid ? SUCCESS : INSUFFICIENT_SIZE;
}

API int nvmlDeviceGetName(gpu_t *gpu, char *name, unsigned length) {
    (void)gpu;
    return snprintf(name, length, "NVIDIA Stand-in") < (int)length ? SUCCESS : INSUFFICIENT_SIZE;
}

API int nvmlDeviceGetMemoryInfo(gpu_t *gpu, memory_t *memory) {
    if (setting("FAKE_NVML_SHARED", -1) == gpu->number)
        return NOT_SUPPORTED;
    memory->total = 40 * GIB;
    memory->used = gpu->number * GIB;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

API int nvmlDeviceGetMemoryInfo_v2(gpu_t *gpu, memory_v2_t *memory) {
    memory_t plain;
    if (memory->version != (sizeof *memory | 2 << 24))
        return ARGUMENT_VERSION_MISMATCH;
    int result = nvmlDeviceGetMemoryInfo(gpu, &plain);
    if (result == SUCCESS) {
        memory->total = plain.total;
        memory->reserved = 0;
        memory->free = plain.free;
        memory->used = plain.used;
    }
    return result;
}

API int nvmlDeviceGetPciInfo_v3(gpu_t *gpu, pci_info_t *pci) {
    memset(pci, 0, sizeof *pci);
    pci->bus = 0x17 + 0x20 * gpu->number;
    snprintf(pci->bus_id, sizeof pci->bus_id, "%08X:%02X:%02X.0", pci->domain, pci->bus, pci->device);
    snprintf(pci->bus_id_legacy, sizeof pci->bus_id_legacy, "%04X:%02X:%02X.0", pci->domain, pci->bus, pci->device);
    return SUCCESS;
}

API int nvmlDeviceGetMigMode(gpu_t *gpu, unsigned *current, unsigned *pending) {
    int split = setting("FAKE_NVML_SPLIT", -1);
    if (split < 0)
        return NOT_SUPPORTED;
    *current = *pending = split == gpu->number;
    return SUCCESS;
}
