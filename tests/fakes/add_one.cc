// A custom operation for tests: adds one to each element. In TensorFlow's C interface: its headers cost the compiler half
// a second, and those of the C++ interface nine.
#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"

namespace {

void* create(TF_OpKernelConstruction*) { return nullptr; }

void compute(void*, TF_OpKernelContext* context) {
  TF_Status* status = TF_NewStatus();
  TF_Tensor* given = nullptr;
  TF_GetInput(context, 0, &given, status);
  if (TF_GetCode(status) == TF_OK) {
    int64_t sizes[8];
    const int dims = TF_NumDims(given);
    for (int i = 0; i < dims; ++i) sizes[i] = TF_Dim(given, i);
    TF_Tensor* result = TF_AllocateOutput(context, 0, TF_FLOAT, sizes, dims, TF_TensorByteSize(given), status);
    if (TF_GetCode(status) == TF_OK) {
      const float* from = static_cast<const float*>(TF_TensorData(given));
      float* to = static_cast<float*>(TF_TensorData(result));
      for (int64_t i = 0; i < TF_TensorElementCount(given); ++i) to[i] = from[i] + 1;
    }
    TF_DeleteTensor(result);
    TF_DeleteTensor(given);
  }
  if (TF_GetCode(status) != TF_OK) TF_OpKernelContext_Failure(context, status);
  TF_DeleteStatus(status);
}

void infer_shape(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeHandle* shape = TF_NewShapeHandle();
  TF_ShapeInferenceContextGetInput(context, 0, shape, status);
  if (TF_GetCode(status) == TF_OK) TF_ShapeInferenceContextSetOutput(context, 0, shape, status);
  TF_DeleteShapeHandle(shape);
}

// When the library is loaded, like the macros of the C++ interface.
__attribute__((constructor)) void add() {
  TF_Status* status = TF_NewStatus();
  TF_OpDefinitionBuilder* operation = TF_NewOpDefinitionBuilder("TestAddOne");
  TF_OpDefinitionBuilderAddInput(operation, "x: float");
  TF_OpDefinitionBuilderAddOutput(operation, "y: float");
  TF_OpDefinitionBuilderSetShapeInferenceFunction(operation, infer_shape);
  TF_RegisterOpDefinition(operation, status);
  TF_RegisterKernelBuilder("AddOne", TF_NewKernelBuilder("TestAddOne", "CPU", create, compute, nullptr), status);
  TF_DeleteStatus(status);
}

}  // namespace
