/* A stand-in for NVIDIA's libcuda.so.1 that tells when CUDA was initialised, and what it would have seen.
 *
 * cuInit is where CUDA reads CUDA_VISIBLE_DEVICES. This one appends a line to the file named by FAKE_CUDA_LOG,
 *
 *   pid <tab> CUDA_VISIBLE_DEVICES=... <tab> CUDA_DEVICE_ORDER=...
 *
 * (a variable that is not set is left out), and finds no GPU, so that TensorFlow goes on with the CPU.
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
    return CUDA_ERROR_NO_DEVICE;
}

API int cuDriverGetVersion(int *version) {
    *version = 12090;
    return 0;
}
