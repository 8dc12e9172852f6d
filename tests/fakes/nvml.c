/* A stand-in for NVIDIA's libnvidia-ml.so.1: what the real Python bindings call to list and to watch GPUs.
 *
 * The variables below steer it; they are read at every call, so that a test may change its mind. So is the file that
 * FAKE_NVML_FILE names, whose lines NAME=VALUE (the names without FAKE_NVML_) come before the variables: with it a
 * test changes what a running daemon sees. GPUs are counted from 0 by PCI address.
 *
 *   FAKE_NVML_UUIDS       the GPUs' UUIDs, separated by commas, at most 16 (default: the four below)
 *   FAKE_NVML_COUNT       how many of them there are (default: all)
 *   FAKE_NVML_FAILURE     the number of the error that every call gives, such as 9: driver not loaded
 *   FAKE_NVML_LOST        the number of a GPU that answers "GPU is lost"
 *   FAKE_NVML_SPLIT       the number of a GPU in MIG mode; its slices are
 *   FAKE_NVML_SLICES      the UUIDs of the split GPU's slices, separated by commas, at most 7; an empty one is a gap
 *                         (default: the two below, with a gap between them); - for none
 *   FAKE_NVML_SHARED      the number of a GPU that has no memory of its own
 *   FAKE_NVML_REVERSED    set: the GPUs are enumerated from the highest PCI address to the lowest
 *   FAKE_NVML_AFFINITY    GPU:NODE:FIRST-LAST for each GPU that tells its NUMA node and the CPUs there, separated by commas
 *   FAKE_NVML_UTILIZATION per cent of the time that every GPU computes (default: 0); -1 for "not supported"
 *   FAKE_NVML_MILLIWATTS  the power that every GPU draws (default: 70000); -1 for "not supported"
 *   FAKE_NVML_PROCESSES   GPU:PID:MIB for each process that computes, separated by commas; MIB -1 for "unknown"; slice
 *                         i of the split GPU is 100 + i
 *   FAKE_NVML_PRODUCT     the product name of every GPU (default: NVIDIA Stand-in)
 *   FAKE_NVML_HANG        a file: while it exists, calls about a GPU's memory do not return
 *   FAKE_NVML_HIDDEN      set: no process is listed, as in most containers
 *   FAKE_NVML_KEPT        the number of a GPU on which memory of processes that have ended stays in use
 *   FAKE_NVML_MUTE        the number of a GPU that gives an unknown error once a process that used it has ended
 *   FAKE_NVML_FULL        the number of a GPU whose whole memory is in use
 *   FAKE_NVML_EXCLUSIVE   the number of a GPU in compute mode EXCLUSIVE_PROCESS
 *   FAKE_NVML_INIT_LOG    a file that gets a line with the pid at each initialisation
 *   FAKE_NVML_BLIND       the number of a GPU on which memory of processes is neither counted nor listed
 *
 * Memory that processes have allocated with cuda.c, in files of the folder that the variable FAKE_GPU_MEMORY names, is
 * in use, and belongs to these processes, as long as they run.
 *
 * The structures are those of nvml.h; no header of NVIDIA's is needed to build this.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define MAX_GPUS 16
#define MAX_SLICES 7
#define SLICE 100 /* slice i has this number + i */
#define MAX_TEXT 1024
#define MIB (1024ULL * 1024)
#define GIB (1024 * MIB)
#define PREFIX "FAKE_NVML_"

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    GPU_IS_LOST = 15,
    UNKNOWN = 999,
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

typedef struct {
    unsigned gpu, memory;
} utilization_t;

typedef struct {
    unsigned pid;
    unsigned long long used;
    unsigned gpu_instance, compute_instance;
} process_t;

/* The first two begin alike. */
static const char *DEFAULT_UUIDS =
    "GPU-8f3a1c02-5b7e-4d11-9a60-0c1d2e3f4a5b,"
    "GPU-8f3a9d47-1c2b-4e5f-8a90-b1c2d3e4f506,"
    "GPU-2e6b7710-93af-4c08-b5d4-71e8f0a9c3b2,"
    "GPU-c40d55e9-0f6a-47b3-8e21-d9a8b7c6e5f4";

static const char *DEFAULT_SLICES =
    "MIG-5e0c8f7a-2d31-5c64-9b0e-6f1a2b3c4d5e,"
    ","
    "MIG-91b7d3e4-8a05-5f19-a7c2-0e9d8c7b6a51";

static gpu_t gpus[MAX_GPUS], slices[MAX_SLICES];
static int references;

/* The text of a setting, from the file or the variable, cut to fit; 0 where it is not set. */
static int text_of(const char *name, char out[MAX_TEXT]) {
    const char *path = getenv(PREFIX "FILE"), *text = getenv(name);
    const char *key = name + strlen(PREFIX);
    FILE *file = path ? fopen(path, "re") : NULL;
    int found = 0;
    while (file && !found && fgets(out, MAX_TEXT, file)) {
        size_t length = strlen(key);
        found = strncmp(out, key, length) == 0 && out[length] == '=';
        if (found)
            memmove(out, out + length + 1, strlen(out + length + 1) + 1);
    }
    if (file)
        fclose(file);
    if (!found && text)
        found = snprintf(out, MAX_TEXT, "%s", text) >= 0;
    if (found)
        out[strcspn(out, "\n")] = 0;
    return found && *out;
}

/* The number in a setting, or `otherwise`. */
static int setting(const char *name, int otherwise) {
    char text[MAX_TEXT];
    return text_of(name, text) ? atoi(text) : otherwise;
}

/* Copies the UUID of GPU or slice `wanted` to `out` (when there is room), and returns how many GPUs' or slices' UUIDs
 * there are. */
static int uuid_of(int wanted, char *out, size_t room) {
    char set[MAX_TEXT];
    int is_slice = wanted >= SLICE, number = is_slice ? SLICE : 0;
    const char *text = is_slice ? DEFAULT_SLICES : DEFAULT_UUIDS;
    if (text_of(is_slice ? "FAKE_NVML_SLICES" : "FAKE_NVML_UUIDS", set))
        text = set;
    for (; *text; number++) {
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

/* Whether a process runs: one that has ended but was not waited for does not. */
static int runs(int pid) {
    char path[64], state = 'X';
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
        state = 'X';
    fclose(file);
    return state != 'Z' && state != 'X';
}

/* Whether a process that had memory on a GPU has ended. */
static int was_used(int number) {
    const char *folder = getenv("FAKE_GPU_MEMORY");
    char uuid[MAX_TEXT] = "";
    DIR *entries = folder ? opendir(folder) : NULL;
    int found = 0;
    if (!entries)
        return 0;
    uuid_of(number, uuid, sizeof uuid);
    size_t length = strlen(uuid);
    for (struct dirent *entry; !found && (entry = readdir(entries));)
        found = strncmp(entry->d_name, uuid, length) == 0 && entry->d_name[length] == '.' &&
                !runs(atoi(entry->d_name + length + 1));
    closedir(entries);
    return found;
}

/* Calls `use` for each process that has allocated memory on a GPU or slice with cuda.c; returns the bytes in use. */
static unsigned long long allocated_on(int number, void (*use)(int pid, unsigned long long bytes, void *), void *data) {
    const char *folder = getenv("FAKE_GPU_MEMORY");
    char uuid[MAX_TEXT] = "", path[2 * MAX_TEXT];
    unsigned long long total = 0;
    DIR *entries = folder && setting("FAKE_NVML_BLIND", -1) != number ? opendir(folder) : NULL;
    int kept = setting("FAKE_NVML_KEPT", -1) == number;
    if (!entries)
        return 0;
    uuid_of(number, uuid, sizeof uuid);
    for (struct dirent *entry; (entry = readdir(entries));) {
        size_t length = strlen(uuid);
        unsigned long long bytes = 0;
        if (strncmp(entry->d_name, uuid, length) != 0 || entry->d_name[length] != '.')
            continue;
        int pid = atoi(entry->d_name + length + 1), running = runs(pid);
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        FILE *file = fopen(path, "re");
        if (!file)
            continue;
        if (fscanf(file, "%llu", &bytes) == 1 && (running || kept))
            total += bytes;
        fclose(file);
        if (running && bytes && use)
            use(pid, bytes, data);
    }
    closedir(entries);
    return total;
}

/* What every call looks at first. */
static int state(void) {
    int failure = setting("FAKE_NVML_FAILURE", SUCCESS);
    return failure != SUCCESS ? failure : references == 0 ? UNINITIALIZED : SUCCESS;
}

/* The GPU that a slice is of, -1 where none is split; any other number is that of the GPU itself. */
static int parent_of(int number) { return number >= SLICE ? setting("FAKE_NVML_SPLIT", -1) : number; }

static int is_split(int number) { return number < SLICE && setting("FAKE_NVML_SPLIT", -1) == number; }

/* The same, for a call about one GPU or slice. */
static int state_of(int number) {
    int result = state();
    if (result == SUCCESS && setting("FAKE_NVML_LOST", -1) == parent_of(number))
        result = GPU_IS_LOST;
    if (result == SUCCESS && setting("FAKE_NVML_MUTE", -1) == number && was_used(number))
        result = UNKNOWN;
    return result;
}

static int handle_of(int number, gpu_t **gpu) {
    int result = state_of(number);
    if (result == SUCCESS) {
        *gpu = number >= SLICE ? &slices[number - SLICE] : &gpus[number];
        (*gpu)->number = number;
    }
    return result;
}

/* A slice with such a UUID, or SLICE + MAX_SLICES. */
static int slice_of(const char *uuid) {
    char known[MAX_TEXT];
    int number = SLICE;
    for (; number < SLICE + MAX_SLICES; number++) {
        *known = 0;
        uuid_of(number, known, sizeof known);
        if (strncmp(known, "MIG-", 4) == 0 && strcmp(known, uuid) == 0)
            break;
    }
    return number;
}

API int nvmlInitWithFlags(unsigned flags) {
    int failure = setting("FAKE_NVML_FAILURE", SUCCESS);
    char path[MAX_TEXT];
    FILE *log = text_of("FAKE_NVML_INIT_LOG", path) ? fopen(path, "ae") : NULL;
    (void)flags;
    if (log) {
        fprintf(log, "%d\n", (int)getpid());
        fclose(log);
    }
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
    int result = state();
    if (result != SUCCESS)
        return result;
    return snprintf(version, length, "999.0") < (int)length ? SUCCESS : INSUFFICIENT_SIZE;
}

API int nvmlDeviceGetCount_v2(unsigned *count) {
    int result = state();
    if (result == SUCCESS)
        *count = gpu_count();
    return result;
}

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu_t **gpu) {
    char reversed[MAX_TEXT];
    int result = state();
    if (result != SUCCESS)
        return result;
    int count = gpu_count();
    if (index >= (unsigned)count)
        return INVALID_ARGUMENT;
    return handle_of(text_of("FAKE_NVML_REVERSED", reversed) ? count - 1 - (int)index : (int)index, gpu);
}

API int nvmlDeviceGetHandleByUUID(const char *uuid, gpu_t **gpu) {
    char known[MAX_TEXT];
    int result = state();
    if (result != SUCCESS)
        return result;
    for (int number = 0; number < gpu_count(); number++) {
        *known = 0;
        uuid_of(number, known, sizeof known);
        if (strcmp(known, uuid) == 0)
            return handle_of(number, gpu);
    }
    int part = parent_of(SLICE) >= 0 ? slice_of(uuid) : SLICE + MAX_SLICES;
    return part < SLICE + MAX_SLICES ? handle_of(part, gpu) : NOT_FOUND;
}

API int nvmlDeviceGetUUID(gpu_t *gpu, char *uuid, unsigned length) {
    *uuid = 0;
    uuid_of(gpu->number, uuid, length);
    return *uuid ? SUCCESS : INSUFFICIENT_SIZE;
}

API int nvmlDeviceGetName(gpu_t *gpu, char *name, unsigned length) {
    const char *text = gpu->number >= SLICE ? "NVIDIA Stand-in MIG 2g.10gb" : "NVIDIA Stand-in";
    char product[MAX_TEXT];
    if (text_of("FAKE_NVML_PRODUCT", product))
        text = product;
    return snprintf(name, length, "%s", text) < (int)length ? SUCCESS : INSUFFICIENT_SIZE;
}

API int nvmlDeviceGetMemoryInfo(gpu_t *gpu, memory_t *memory) {
    char hang[MAX_TEXT];
    int result = state_of(gpu->number);
    if (result != SUCCESS)
        return result;
    while (text_of("FAKE_NVML_HANG", hang) && access(hang, F_OK) == 0)
        usleep(1000);
    if (setting("FAKE_NVML_SHARED", -1) == gpu->number)
        return NOT_SUPPORTED;
    if (is_split(gpu->number))
        return NO_PERMISSION; /* as to any caller without privileges */
    memory->total = (gpu->number >= SLICE ? 10 : 40) * GIB;
    memory->used = (unsigned long long)(gpu->number % SLICE) * GIB + allocated_on(gpu->number, NULL, NULL);
    if (setting("FAKE_NVML_FULL", -1) == gpu->number)
        memory->used = memory->total;
    memory->free = memory->used < memory->total ? memory->total - memory->used : 0;
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

API int nvmlDeviceGetComputeMode(gpu_t *gpu, int *mode) {
    *mode = setting("FAKE_NVML_EXCLUSIVE", -1) == gpu->number ? 3 : 0;
    return gpu->number >= SLICE ? NOT_SUPPORTED : state_of(gpu->number);
}

API int nvmlDeviceGetMaxMigDeviceCount(gpu_t *gpu, unsigned *count) {
    *count = is_split(gpu->number) ? MAX_SLICES : 0;
    return state_of(gpu->number);
}

API int nvmlDeviceGetMigDeviceHandleByIndex(gpu_t *gpu, unsigned index, gpu_t **part) {
    char known[MAX_TEXT] = "";
    int result = state_of(gpu->number);
    if (result != SUCCESS)
        return result;
    if (!is_split(gpu->number))
        return NOT_SUPPORTED;
    if (index >= MAX_SLICES)
        return INVALID_ARGUMENT;
    uuid_of(SLICE + (int)index, known, sizeof known);
    return strncmp(known, "MIG-", 4) == 0 ? handle_of(SLICE + (int)index, part) : NOT_FOUND;
}

/* Whether FAKE_NVML_AFFINITY tells of the GPU; its node, and its first and last CPU. */
static int affinity_of(gpu_t *gpu, unsigned found[3]) {
    char text[MAX_TEXT];
    int number, length;
    if (!text_of("FAKE_NVML_AFFINITY", text))
        return 0;
    for (const char *next = text;
         sscanf(next, "%d:%u:%u-%u%n", &number, &found[0], &found[1], &found[2], &length) == 4;) {
        if (number == gpu->number)
            return 1;
        next += length + (next[length] == ',');
    }
    return 0;
}

/* Sets the bits `first` to `last` in `words`, and clears the others. */
static int bits(unsigned first, unsigned last, unsigned size, unsigned long *words) {
    if (last / 64 >= size)
        return INSUFFICIENT_SIZE;
    memset(words, 0, size * sizeof *words);
    for (unsigned bit = first; bit <= last; bit++)
        words[bit / 64] |= 1UL << bit % 64;
    return SUCCESS;
}

API int nvmlDeviceGetCpuAffinity(gpu_t *gpu, unsigned size, unsigned long *words) {
    unsigned found[3];
    int result = state_of(gpu->number);
    if (result != SUCCESS)
        return result;
    return affinity_of(gpu, found) ? bits(found[1], found[2], size, words) : NOT_SUPPORTED;
}

API int nvmlDeviceGetMemoryAffinity(gpu_t *gpu, unsigned size, unsigned long *words, unsigned scope) {
    unsigned found[3];
    int result = state_of(gpu->number);
    if (result != SUCCESS || scope != 0)
        return result != SUCCESS ? result : INVALID_ARGUMENT;
    return affinity_of(gpu, found) ? bits(found[0], found[0], size, words) : NOT_SUPPORTED;
}

API int nvmlDeviceGetUtilizationRates(gpu_t *gpu, utilization_t *rates) {
    int result = state_of(gpu->number), percent = setting("FAKE_NVML_UTILIZATION", 0);
    if (result == SUCCESS && (percent < 0 || gpu->number >= SLICE || is_split(gpu->number)))
        result = NOT_SUPPORTED; /* real ones do not tell in MIG mode */
    if (result == SUCCESS) {
        rates->gpu = percent;
        rates->memory = percent / 2;
    }
    return result;
}

API int nvmlDeviceGetPowerUsage(gpu_t *gpu, unsigned *milliwatts) {
    int result = state_of(gpu->number), power = setting("FAKE_NVML_MILLIWATTS", 70000);
    if (result == SUCCESS && (power < 0 || gpu->number >= SLICE))
        result = NOT_SUPPORTED;
    if (result == SUCCESS)
        *milliwatts = power;
    return result;
}

API int nvmlDeviceGetTotalEnergyConsumption(gpu_t *gpu, unsigned long long *millijoules) {
    unsigned milliwatts;
    int result = nvmlDeviceGetPowerUsage(gpu, &milliwatts);
    if (result == SUCCESS)
        *millijoules = 100ULL * milliwatts;
    return result;
}

API int nvmlDeviceGetTemperature(gpu_t *gpu, int sensor, unsigned *celsius) {
    int result = state_of(gpu->number);
    if (result == SUCCESS && (sensor != 0 || gpu->number >= SLICE))
        result = NOT_SUPPORTED;
    if (result == SUCCESS)
        *celsius = 40 + gpu->number;
    return result;
}

typedef struct {
    process_t *processes;
    unsigned room, found;
} listing_t;

static void list(int pid, unsigned long long bytes, void *data) {
    listing_t *listing = data;
    if (listing->found < listing->room)
        listing->processes[listing->found] = (process_t){(unsigned)pid, bytes, ~0U, ~0U};
    listing->found++;
}

API int nvmlDeviceGetComputeRunningProcesses_v3(gpu_t *gpu, unsigned *count, process_t *processes) {
    char text[MAX_TEXT];
    listing_t listing = {processes, processes ? *count : 0, 0};
    int result = state_of(gpu->number), number, length;
    long long pid, mib;
    if (result != SUCCESS)
        return result;
    if (text_of("FAKE_NVML_HIDDEN", text)) {
        *count = 0;
        return SUCCESS;
    }
    if (!text_of("FAKE_NVML_PROCESSES", text))
        *text = 0;
    for (const char *next = text; sscanf(next, "%d:%lld:%lld%n", &number, &pid, &mib, &length) == 3;) {
        next += length + (next[length] == ',');
        if (number == gpu->number)
            list((int)pid, mib < 0 ? ~0ULL : (unsigned long long)mib * MIB, &listing);
    }
    allocated_on(gpu->number, list, &listing);
    *count = listing.found;
    return listing.found > listing.room ? INSUFFICIENT_SIZE : SUCCESS;
}
