/* Sends and receives whole messages of ZeroMQ sockets in one call. `frames.py` calls it; without it, `frames.py` uses
   pyzmq frame by frame, at three times the cost.

   The module is not linked with libzmq. It looks up libzmq's functions in the library that pyzmq has loaded, so that
   both use the same sockets. libzmq's header need not be installed: the few declarations needed are below, and are part
   of its stable interface (ABI 5, libzmq 4).

   `make sanitize` runs its tests under AddressSanitizer and UndefinedBehaviorSanitizer. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#define DONTWAIT 1
#define SNDMORE 2
#define OPTION_EVENTS 15
#define SOURCE_DESCRIPTOR 2

/* What `send` returns for a message that it leaves to pyzmq. */
#define NOT_SENT_HERE (-2)

typedef union {
    unsigned char data[64];
    void *aligned;
} message_t;

static int (*msg_init)(message_t *);
static int (*msg_init_size)(message_t *, size_t);
static int (*msg_close)(message_t *);
static int (*msg_copy)(message_t *, message_t *);
static int (*msg_recv)(message_t *, void *, int);
static int (*msg_send)(message_t *, void *, int);
static int (*msg_more)(const message_t *);
static size_t (*msg_size)(const message_t *);
static void *(*msg_data)(message_t *);
static const char *(*msg_gets)(const message_t *, const char *);
static int (*msg_get)(const message_t *, int);
static int (*get_option)(void *, int, void *, size_t *);
static int (*last_error)(void);

static PyObject *underlying;

/* A large frame, in the memory into which libzmq received it. */

typedef struct {
    PyObject_HEAD
    message_t message;
} Chunk;

static void chunk_dealloc(Chunk *self)
{
    PyTypeObject *type = Py_TYPE(self);
    msg_close(&self->message);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static int chunk_buffer(Chunk *self, Py_buffer *view, int flags)
{
    return PyBuffer_FillInfo(view, (PyObject *)self, msg_data(&self->message), (Py_ssize_t)msg_size(&self->message), 0,
                             flags);
}

static Py_ssize_t chunk_length(Chunk *self) { return (Py_ssize_t)msg_size(&self->message); }

static PyType_Slot chunk_slots[] = {
    {Py_tp_doc, "A large frame, in the memory into which libzmq received it."},
    {Py_tp_dealloc, chunk_dealloc},
    {Py_sq_length, chunk_length},
    {Py_bf_getbuffer, chunk_buffer},
    {0, NULL},
};

static PyType_Spec chunk_spec = {
    .name = "multitower._frames.Chunk",
    .basicsize = sizeof(Chunk),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = chunk_slots,
};

static PyTypeObject *chunk_type;

/* Reads the handle of a socket: NULL once the socket is closed, for which libzmq returns an error.
   Returns 0, or -1 with an exception set. */
static int handle_of(PyObject *socket, void **handle)
{
    PyObject *number = PyObject_GetAttr(socket, underlying);
    if (number == NULL)
        return -1;
    *handle = PyLong_AsVoidPtr(number);
    Py_DECREF(number);
    return *handle == NULL && PyErr_Occurred() ? -1 : 0;
}

/* Receives a frame. Returns 0, libzmq's error number, or -1 with an exception set if a signal handler raised. */
static int receive_frame(message_t *frame, void *handle)
{
    while (msg_recv(frame, handle, DONTWAIT) < 0) {
        int error = last_error();
        if (error != EINTR)
            return error;
        if (PyErr_CheckSignals() < 0)
            return -1;
    }
    return 0;
}

/* Sends a frame and closes it, whatever happens. Returns what receive_frame returns. */
static int send_frame(message_t *frame, void *handle, int flags)
{
    for (;;) {
        int error = msg_send(frame, handle, flags) >= 0 ? 0 : last_error();
        if (error == EINTR) {
            if (PyErr_CheckSignals() == 0)
                continue;
            error = -1;
        }
        msg_close(frame);
        return error;
    }
}

/* Makes a Python object of a received frame: bytes, or a Chunk from `bulky` bytes on. Closes the frame.
   Returns NULL with an exception set if there is no memory. */
static PyObject *object_of(message_t *frame, Py_ssize_t bulky)
{
    size_t size = msg_size(frame);
    if (size < (size_t)bulky) {
        PyObject *bytes = PyBytes_FromStringAndSize(msg_data(frame), (Py_ssize_t)size);
        msg_close(frame);
        return bytes;
    }
    Chunk *chunk = (Chunk *)chunk_type->tp_alloc(chunk_type, 0);
    if (chunk == NULL) {
        msg_close(frame);
        return NULL;
    }
    /* A zmq_msg_t must not be moved by copying its bytes. zmq_msg_copy shares the data. */
    msg_init(&chunk->message);
    if (msg_copy(&chunk->message, frame) != 0) {
        msg_close(frame);
        Py_DECREF(chunk);
        return PyErr_NoMemory();
    }
    msg_close(frame);
    return (PyObject *)chunk;
}

/* Reads a property of the connection that a frame came by. Returns text, None without one, or NULL with an exception
   set. */
static PyObject *property_of(const message_t *frame, const char *name)
{
    const char *value = msg_gets(frame, name);
    if (value == NULL)
        Py_RETURN_NONE;
    return PyUnicode_DecodeUTF8(value, (Py_ssize_t)strlen(value), "replace");
}

/* Receives a message. With a fourth argument, a property's name, the result is a tuple: the message, the property and the
   descriptor by which libzmq has read the message. */
static PyObject *receive(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 && count != 4) {
        PyErr_SetString(PyExc_TypeError, "receive(socket, limit, bulky[, property])");
        return NULL;
    }
    const char *property = NULL;
    if (count == 4 && (property = PyUnicode_AsUTF8(arguments[3])) == NULL)
        return NULL;
    Py_ssize_t limit = PyLong_AsSsize_t(arguments[1]), bulky = PyLong_AsSsize_t(arguments[2]);
    void *handle;
    if (PyErr_Occurred() || handle_of(arguments[0], &handle) < 0)
        return NULL;
    message_t frame;
    msg_init(&frame);
    int error = receive_frame(&frame, handle);
    PyObject *list = error ? NULL : PyList_New(0);
    if (list == NULL) {
        msg_close(&frame);
        return error > 0 ? PyLong_FromLong(error) : NULL;
    }
    PyObject *sender = NULL;
    int descriptor = property != NULL ? msg_get(&frame, SOURCE_DESCRIPTOR) : -1;
    /* libzmq delivers messages whole: once the first frame is here, so are the others. All are read, even after a
       failure: frames left behind would be taken for the next message. */
    int failed = property != NULL && (sender = property_of(&frame, property)) == NULL;
    for (;;) {
        int more = msg_more(&frame);
        if (!failed && PyList_GET_SIZE(list) < limit) {
            PyObject *item = object_of(&frame, bulky);
            failed = item == NULL || PyList_Append(list, item) < 0;
            Py_XDECREF(item);
        } else {
            msg_close(&frame);
        }
        if (!more)
            break;
        msg_init(&frame);
        do
            error = msg_recv(&frame, handle, DONTWAIT) >= 0 ? 0 : last_error();
        while (error == EINTR);
        if (error) {
            msg_close(&frame);
            Py_DECREF(list);
            Py_XDECREF(sender);
            return failed ? NULL : PyLong_FromLong(error);
        }
    }
    if (failed) {
        Py_DECREF(list);
        Py_XDECREF(sender);
        return NULL;
    }
    if (property == NULL)
        return list;
    return Py_BuildValue("NNi", list, sender, descriptor);
}

/* Whether this module sends the object: a Chunk, or small bytes. pyzmq sends large objects, without copying them. */
static int can_send(PyObject *item, Py_ssize_t bulky)
{
    if (PyBytes_CheckExact(item))
        return PyBytes_GET_SIZE(item) < bulky;
    if (Py_IS_TYPE(item, chunk_type))
        return 1;
    if (!PyMemoryView_Check(item))
        return 0;
    Py_buffer *view = PyMemoryView_GET_BUFFER(item);
    return view->len < bulky && PyBuffer_IsContiguous(view, 'C');
}

/* Makes a frame of an object. Returns 0, or -1 with an exception set; then there is no frame to close. */
static int make_frame(message_t *frame, PyObject *item)
{
    if (Py_IS_TYPE(item, chunk_type)) {
        msg_init(frame);
        if (msg_copy(frame, &((Chunk *)item)->message) == 0)
            return 0;
        msg_close(frame);
        PyErr_NoMemory();
        return -1;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(item, &view, PyBUF_SIMPLE) < 0)
        return -1;
    int made = msg_init_size(frame, (size_t)view.len);
    if (made == 0)
        memcpy(msg_data(frame), view.buf, (size_t)view.len);
    else
        PyErr_NoMemory();
    PyBuffer_Release(&view);
    return made;
}

/* Frames of a message that need no memory from the heap. */
#define FEW 16

/* Sends a message. All frames are made before the first is sent, so that an object of which no frame can be made leaves
   the socket as it was. Returns as the Python function `send` does. */
static PyObject *send_all(void *handle, PyObject **objects, Py_ssize_t count, Py_ssize_t bulky)
{
    if (count == 0) /* pyzmq raises */
        return PyLong_FromLong(NOT_SENT_HERE);
    for (Py_ssize_t index = 0; index < count; index++)
        if (!can_send(objects[index], bulky))
            return PyLong_FromLong(NOT_SENT_HERE);
    message_t few[FEW], *frames = few;
    if (count > FEW && (frames = PyMem_New(message_t, count)) == NULL)
        return PyErr_NoMemory();
    Py_ssize_t made = 0, sent = 0;
    int outcome = 0;
    while (made < count && outcome == 0) {
        outcome = make_frame(&frames[made], objects[made]);
        made += outcome == 0;
    }
    while (sent < count && outcome == 0) {
        outcome = send_frame(&frames[sent], handle, sent + 1 < count ? DONTWAIT | SNDMORE : DONTWAIT);
        sent++;
    }
    while (sent < made)
        msg_close(&frames[sent++]);
    if (frames != few)
        PyMem_Free(frames);
    return outcome < 0 ? NULL : PyLong_FromLong(outcome);
}

static PyObject *send(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "send(socket, message, bulky)");
        return NULL;
    }
    Py_ssize_t bulky = PyLong_AsSsize_t(arguments[2]);
    void *handle;
    if (PyErr_Occurred() || handle_of(arguments[0], &handle) < 0)
        return NULL;
    PyObject *message = PySequence_Fast(arguments[1], "a message is a list or tuple of frames");
    if (message == NULL)
        return NULL;
    PyObject *outcome = send_all(handle, PySequence_Fast_ITEMS(message), PySequence_Fast_GET_SIZE(message), bulky);
    Py_DECREF(message);
    return outcome;
}

static PyObject *events(PyObject *Py_UNUSED(module), PyObject *socket)
{
    void *handle;
    if (handle_of(socket, &handle) < 0)
        return NULL;
    int found = 0;
    size_t size = sizeof found;
    while (get_option(handle, OPTION_EVENTS, &found, &size) != 0) {
        int error = last_error();
        if (error != EINTR)
            return PyLong_FromLong(-error);
        if (PyErr_CheckSignals() < 0)
            return NULL;
    }
    return PyLong_FromLong(found);
}

static PyMethodDef functions[] = {
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL,
     "receive(socket, limit, bulky[, property]): the next message, or libzmq's error number; with a property's name, a "
     "tuple of the message, that property of its connection and the descriptor of it."},
    {"send", (PyCFunction)(void (*)(void))send, METH_FASTCALL,
     "send(socket, message, bulky): 0, libzmq's error number, or -2 for a message that pyzmq has to send."},
    {"events", events, METH_O, "events(socket): ZMQ_EVENTS, or libzmq's error number, negative."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_frames", "Whole messages of ZeroMQ sockets in one call.", -1, functions, NULL, NULL, NULL,
    NULL,
};

/* Looks up libzmq's functions through the extension module of pyzmq that is linked with it. */
static int find_libzmq(void)
{
    PyObject *backend = PyImport_ImportModule("zmq.backend.cython._zmq");
    if (backend == NULL)
        return -1;
    PyObject *path = PyModule_GetFilenameObject(backend);
    Py_DECREF(backend);
    if (path == NULL)
        return -1;
    const char *text = PyUnicode_AsUTF8(path);
    void *library = text == NULL ? NULL : dlopen(text, RTLD_NOW | RTLD_NOLOAD);
    Py_DECREF(path);
    struct {
        const char *name;
        void *target;
    } wanted[] = {
        {"zmq_msg_init", &msg_init},      {"zmq_msg_init_size", &msg_init_size}, {"zmq_msg_close", &msg_close},
        {"zmq_msg_copy", &msg_copy},      {"zmq_msg_recv", &msg_recv},           {"zmq_msg_send", &msg_send},
        {"zmq_msg_more", &msg_more},      {"zmq_msg_size", &msg_size},           {"zmq_msg_data", &msg_data},
        {"zmq_msg_gets", &msg_gets},      {"zmq_msg_get", &msg_get},
        {"zmq_getsockopt", &get_option},  {"zmq_errno", &last_error},
    };
    for (size_t index = 0; index < sizeof wanted / sizeof *wanted; index++) {
        void *found = library == NULL ? NULL : dlsym(library, wanted[index].name);
        if (found == NULL) {
            PyErr_Format(PyExc_ImportError, "%s not found in pyzmq's libzmq", wanted[index].name);
            return -1;
        }
        memcpy(wanted[index].target, &found, sizeof found);
    }
    return 0;
}

PyMODINIT_FUNC PyInit__frames(void)
{
    if (find_libzmq() < 0)
        return NULL;
    underlying = PyUnicode_InternFromString("underlying");
    chunk_type = (PyTypeObject *)PyType_FromSpec(&chunk_spec);
    PyObject *module = underlying == NULL || chunk_type == NULL ? NULL : PyModule_Create(&definition);
    if (module != NULL && PyModule_AddObjectRef(module, "Chunk", (PyObject *)chunk_type) < 0)
        Py_CLEAR(module);
    return module;
}
