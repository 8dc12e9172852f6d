/* A stand-in for NVIDIA's libcuda.so.1 that tells when CUDA was initialised, and what it would have seen.
 *
 * cuInit is where CUDA reads CUDA_VISIBLE_DEVICES. This one appends a line to the file named by FAKE_CUDA_LOG,
 *
 *   pid <tab> CUDA_VISIBLE_DEVICES=... <tab> CUDA_DEVICE_ORDER=...
 *
 * (a variable that is not set is left out), and finds no GPU, so that TensorFlow goes on with the CPU. It finds one, for
 * handlers that ask for no more than that, where the variable FAKE_CUDA_GONE names a file, whether that exists or not,
 * and the file does not hold the UUID in CUDA_VISIBLE_DEVICES; a test may write it while processes run.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define CUDA_ERROR_NO_DEVICE 100

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

API int cuInit(unsigned flags) {
    const char *path = getenv("FAKE_CUDA_LOG");
    (void)flags;
    if (path) {
        char line[4096];
        snprintf(line, sizeof line, "%d", (int)getpid());
        append(line, sizeof line - 1, "CUDA_VISIBLE_DEVICES");
        append(line, sizeof line - 1, "CUDA_DEVICE_ORDER");
        strcat(line, "\n");
        /* One write to a file opened for appending: lines of several processes never mix. */
        int log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (log < 0 || write(log, line, strlen(line)) < 0)
            perror("stand-in libcuda: FAKE_CUDA_LOG");
        if (log >= 0)
            close(log);
    }
    return found() ? 0 : CUDA_ERROR_NO_DEVICE;
}

API int cuDriverGetVersion(int *version) {
    *version = 12090;
    return 0;
}
