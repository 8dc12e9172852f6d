// A custom operation for tests: adds one to each element.
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

REGISTER_OP("TestAddOne")
    .Input("x: float")
    .Output("y: float")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      context->set_output(0, context->input(0));
      return absl::OkStatus();
    });

class AddOne : public tensorflow::OpKernel {
 public:
  explicit AddOne(tensorflow::OpKernelConstruction* construction) : OpKernel(construction) {}

  void Compute(tensorflow::OpKernelContext* context) override {
    const tensorflow::Tensor& given = context->input(0);
    tensorflow::Tensor* result = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, given.shape(), &result));
    for (int64_t i = 0; i < given.NumElements(); ++i) result->flat<float>()(i) = given.flat<float>()(i) + 1;
  }
};

REGISTER_KERNEL_BUILDER(Name("TestAddOne").Device(tensorflow::DEVICE_CPU), AddOne);

}  // namespace
