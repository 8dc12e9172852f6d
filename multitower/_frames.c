/* Whole messages of ZeroMQ sockets in one call: what `frames.py` does with pyzmq frame by frame, for a third of its cost.

   Nothing is linked: the functions of libzmq are looked up in the library that pyzmq has loaded, so that both speak of
   the same sockets. The few declarations of libzmq that are needed stand here, since its header need not be installed;
   they are part of its stable interface (ABI 5, libzmq 4). */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#define DONTWAIT 1
#define SNDMORE 2
#define OPTION_EVENTS 15

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
static int (*get_option)(void *, int, void *, size_t *);
static int (*last_error)(void);

static PyObject *underlying;

/* A large frame where libzmq received it. */

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

static PyObject *chunk_get_buffer(PyObject *self, void *Py_UNUSED(closure)) { return PyMemoryView_FromObject(self); }

static PyGetSetDef chunk_attributes[] = {
    {"buffer", chunk_get_buffer, NULL, "A view of its bytes, which can be written, as with pyzmq's frames.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot chunk_slots[] = {
    {Py_tp_doc, "A large frame where libzmq received it."},
    {Py_tp_dealloc, chunk_dealloc},
    {Py_tp_getset, chunk_attributes},
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

/* The handle of a socket: NULL once it is closed, which libzmq answers by an error. Returns -1 with an exception. */
static int handle_of(PyObject *socket, void **handle)
{
    PyObject *number = PyObject_GetAttr(socket, underlying);
    if (number == NULL)
        return -1;
    *handle = PyLong_AsVoidPtr(number);
    Py_DECREF(number);
    return *handle == NULL && PyErr_Occurred() ? -1 : 0;
}

/* Receives a frame. Returns 0, or the number of an error, or -1 with an exception, when a signal's handler raises. */
static int receive_frame(message_t *frame, void *handle, int flags)
{
    for (;;) {
        int got;
        if (flags & DONTWAIT) {
            got = msg_recv(frame, handle, flags);
        } else {
            Py_BEGIN_ALLOW_THREADS
            got = msg_recv(frame, handle, flags);
            Py_END_ALLOW_THREADS
        }
        if (got >= 0)
            return 0;
        int error = last_error();
        if (error != EINTR)
            return error;
        if (PyErr_CheckSignals() < 0)
            return -1;
    }
}

/* Sends a frame, which is closed in any case. Returns as receive_frame does. */
static int send_frame(message_t *frame, void *handle, int flags)
{
    for (;;) {
        int sent;
        if (flags & DONTWAIT) {
            sent = msg_send(frame, handle, flags);
        } else {
            Py_BEGIN_ALLOW_THREADS
            sent = msg_send(frame, handle, flags);
            Py_END_ALLOW_THREADS
        }
        int error = sent >= 0 ? 0 : last_error();
        if (error == EINTR) {
            if (PyErr_CheckSignals() == 0)
                continue;
            error = -1;
        }
        msg_close(frame);
        return error;
    }
}

/* What Python keeps of a received frame, which is closed or taken over. */
static PyObject *kept(message_t *frame, Py_ssize_t bulky)
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
    /* A message may not be moved by copying its bytes; libzmq's own copy shares the data. */
    msg_init(&chunk->message);
    if (msg_copy(&chunk->message, frame) != 0) {
        msg_close(frame);
        Py_DECREF(chunk);
        return PyErr_NoMemory();
    }
    msg_close(frame);
    return (PyObject *)chunk;
}

static PyObject *receive(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "receive(socket, limit, bulky, flags)");
        return NULL;
    }
    Py_ssize_t limit = PyLong_AsSsize_t(arguments[1]), bulky = PyLong_AsSsize_t(arguments[2]);
    int flags = (int)PyLong_AsLong(arguments[3]);
    void *handle;
    if (PyErr_Occurred() || handle_of(arguments[0], &handle) < 0)
        return NULL;
    message_t frame;
    msg_init(&frame);
    int error = receive_frame(&frame, handle, flags);
    PyObject *list = error ? NULL : PyList_New(0);
    if (list == NULL) {
        msg_close(&frame);
        return error > 0 ? PyLong_FromLong(error) : NULL;
    }
    /* The rest of a message has arrived when its first frame has. All of it is read, whatever happens: what stayed would
       be taken for the next message. */
    int failed = 0;
    for (;;) {
        int more = msg_more(&frame);
        if (!failed && PyList_GET_SIZE(list) < limit) {
            PyObject *item = kept(&frame, bulky);
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
            return failed ? NULL : PyLong_FromLong(error);
        }
    }
    if (failed) {
        Py_DECREF(list);
        return NULL;
    }
    return list;
}

/* Whether it is sent here: what is large is pyzmq's to send without a copy, except what was received here. */
static int is_ours(PyObject *item, Py_ssize_t bulky)
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

/* Makes a frame of an item. Returns 0, or -1 with an exception. */
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

static PyObject *send(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "send(socket, message, bulky, flags)");
        return NULL;
    }
    Py_ssize_t bulky = PyLong_AsSsize_t(arguments[2]);
    int flags = (int)PyLong_AsLong(arguments[3]);
    void *handle;
    if (PyErr_Occurred() || handle_of(arguments[0], &handle) < 0)
        return NULL;
    PyObject *message = PySequence_Fast(arguments[1], "a message is a list or tuple of frames");
    if (message == NULL)
        return NULL;
    Py_ssize_t size = PySequence_Fast_GET_SIZE(message);
    int outcome = 0;
    for (Py_ssize_t index = 0; index < size && outcome == 0; index++)
        if (!is_ours(PySequence_Fast_GET_ITEM(message, index), bulky))
            outcome = -2;
    for (Py_ssize_t index = 0; index < size && outcome == 0; index++) {
        message_t frame;
        outcome = make_frame(&frame, PySequence_Fast_GET_ITEM(message, index));
        if (outcome == 0)
            outcome = send_frame(&frame, handle, index + 1 < size ? flags | SNDMORE : flags);
    }
    Py_DECREF(message);
    return outcome == -1 ? NULL : PyLong_FromLong(outcome);
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
     "receive(socket, limit, bulky, flags): the next message, or the number of libzmq's error."},
    {"send", (PyCFunction)(void (*)(void))send, METH_FASTCALL,
     "send(socket, message, bulky, flags): 0, the number of libzmq's error, or -2 for a message that is pyzmq's to send."},
    {"events", events, METH_O, "events(socket): ZMQ_EVENTS, or the number of libzmq's error, negative."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_frames", "Whole messages of ZeroMQ sockets in one call.", -1, functions, NULL, NULL, NULL,
    NULL,
};

/* Finds libzmq through the extension of pyzmq's that is linked to it. */
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
        void *place;
    } wanted[] = {
        {"zmq_msg_init", &msg_init},      {"zmq_msg_init_size", &msg_init_size}, {"zmq_msg_close", &msg_close},
        {"zmq_msg_copy", &msg_copy},      {"zmq_msg_recv", &msg_recv},           {"zmq_msg_send", &msg_send},
        {"zmq_msg_more", &msg_more},      {"zmq_msg_size", &msg_size},           {"zmq_msg_data", &msg_data},
        {"zmq_getsockopt", &get_option},  {"zmq_errno", &last_error},
    };
    for (size_t index = 0; index < sizeof wanted / sizeof *wanted; index++) {
        void *found = library == NULL ? NULL : dlsym(library, wanted[index].name);
        if (found == NULL) {
            PyErr_Format(PyExc_ImportError, "pyzmq's libzmq has no %s to be found", wanted[index].name);
            return -1;
        }
        memcpy(wanted[index].place, &found, sizeof found);
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
