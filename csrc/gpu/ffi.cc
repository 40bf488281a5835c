// The way in from XLA for the kernels for GPUs, on a card and emulated.
#include "../call.h"
#include "kernels.h"

struct CUstream_st;

namespace alignjax {
namespace {

// To count bytes, there need be no threads.
struct Nobody {
  int index() const { return 0; }
  int count() const { return 1; }
  void barrier() const {}
  bool all(bool x) const { return x; }
};

// Few threads for narrow layers: more would have no entry of a product to compute.
void share_out(Job& job) {
  const std::int64_t widest = *std::max_element(job.widths, job.widths + job.depth + 1);
  job.side = widest <= 16 ? 2 : 4;
  job.threads = widest <= 8 ? 32 : widest <= 32 ? 64 : 256;
}

// Where the matrices of a network find room: in shared memory the layers and products first.
void count_bytes(Job& job) {
  with_tiles(job, [&](auto number, auto side) {
    Chain<Tiles<decltype(number), static_cast<int>(side.value), Nobody>> chain;
    Arena arena{nullptr, job.room};
    lay_out(chain, job, Nobody{}, arena);
    job.on_chip = arena.used;
    job.scratch_bytes = arena.used_beyond;
  });
}

// Batch axes that lie side by side in every operand are one. Whether few enough are left.
bool merge_axes(const Sizes& batch, const std::vector<Batched>& operands, Job& job,
                const std::vector<Operand*>& into) {
  std::size_t axes = 0;
  std::vector<std::size_t> last;  // the innermost of the axes that each of the job's is made of
  for (std::size_t axis = 0; axis < batch.size(); ++axis) {
    const auto continues = [&](const Batched& operand) {
      return operand.strides[last[axes - 1]] == operand.strides[axis] * batch[axis];
    };
    if (batch[axis] == 1) continue;
    if (axes > 0 && std::all_of(operands.begin(), operands.end(), continues)) {
      job.sizes[axes - 1] *= batch[axis];
      last[axes - 1] = axis;
      continue;
    }
    if (axes == kMostAxes) return false;
    job.sizes[axes++] = batch[axis];
    last.push_back(axis);
  }
  job.axes = static_cast<std::int32_t>(axes);
  for (std::size_t i = 0; i < operands.size(); ++i) {
    into[i]->data = operands[i].data;
    for (std::size_t axis = 0; axis < axes; ++axis) {
      into[i]->strides[axis] = operands[i].strides[last[axis]];
    }
  }
  return true;
}

// Operands: steps, rates, Sigma_xx, Sigma_yx, W*, the slope there, energy, floor, all layers in a
// row. Results: taken, all layers in a row. On a card only `steps` stays unread here.
ffi::Error prepare(ffi::RemainingArgs& args, ffi::RemainingRets& rets,
                   ffi::Span<const std::int64_t> widths, std::int64_t vertex, std::int64_t lanes,
                   Job& job) {
  if (args.size() != 9 || rets.size() != 2) return invalid("operands are missing");
  if (widths.size() < 2 || widths.size() > kMostLayers + 1) return invalid("too many layers");
  job.depth = static_cast<std::int32_t>(widths.size()) - 1;
  job.entries = 0;
  for (std::size_t i = 0; i < widths.size(); ++i) {
    job.widths[i] = widths[i];
    if (i > 0) job.entries += widths[i] * widths[i - 1];
  }
  auto taken = rets.get<ffi::AnyBuffer>(0), moved = rets.get<ffi::AnyBuffer>(1);
  auto steps = args.get<ffi::AnyBuffer>(0);
  if (!taken || !moved || !steps) return invalid("operands cannot be read");
  if (steps->element_type() != ffi::S32 || steps->element_count() != 1) {
    return invalid("steps must be one int32");
  }
  job.steps = static_cast<const std::int32_t*>(steps->untyped_data());
  const auto lead = (*taken)->dimensions();
  const Sizes batch(lead.begin(), lead.end());
  job.networks = 1;
  for (const auto size : batch) job.networks *= size;
  if (job.networks == 0) return ffi::Error::Success();

  const auto dtype = (*moved)->element_type();
  if (dtype != ffi::F32 && dtype != ffi::F64) return invalid("weights must be float32 or float64");
  job.item = dtype == ffi::F32 ? 4 : 8;
  const auto inputs = widths[0], outputs = widths[widths.size() - 1];
  const std::vector<Sizes> shapes = {
      {job.depth}, {inputs, inputs}, {outputs, inputs}, {outputs, inputs}, {outputs, inputs},
      {},          {},               {job.entries}};
  std::vector<Batched> operands(shapes.size());
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    auto operand = args.get<ffi::AnyBuffer>(1 + i);
    if (!operand || operand->element_type() != dtype ||
        !place(operand->dimensions(), operand->untyped_data(), job.item, batch, shapes[i],
               operands[i])) {
      return invalid("operand " + std::to_string(1 + i) + " does not fit");
    }
  }
  Batched whole;
  if (!place((*moved)->dimensions(), (*moved)->untyped_data(), job.item, batch, shapes.back(),
             whole)) {
    return invalid("the result does not fit");
  }
  job.moved = whole.data;
  job.taken = static_cast<std::int32_t*>((*taken)->untyped_data());
  if (vertex < 0 || vertex > job.depth) return invalid("vertex is no index");
  job.vertex = static_cast<std::int32_t>(vertex);
  job.lanes = lanes != 0;
  if (!merge_axes(batch, operands, job,
                  {&job.rates, &job.input_moment, &job.cross_moment, &job.minimizer, &job.slope,
                   &job.energy, &job.floor, &job.layers})) {
    return invalid("more than 8 batch axes of which operands share some: nest fewer vmaps");
  }
  if (job.lanes) return ffi::Error::Success();
  share_out(job);
  if (const char* error = find_room(job)) return ffi::Error(ffi::ErrorCode::kInternal, error);
  count_bytes(job);
  if (const char* error = find_blocks(job)) return ffi::Error(ffi::ErrorCode::kInternal, error);
  return ffi::Error::Success();
}

// `allocate` gives memory for what finds no room on the chip. XLA is not prepared for exceptions.
template <class Allocate>
ffi::Error run(void* stream, Allocate allocate, ffi::RemainingArgs& args, ffi::RemainingRets& rets,
               ffi::Span<const std::int64_t> widths, std::int64_t vertex,
               std::int64_t lanes) noexcept try {
  Job job{};
  const ffi::Error error = prepare(args, rets, widths, vertex, lanes, job);
  if (error.failure() || job.networks == 0) return error;
  if (job.scratch_bytes > 0) {
    job.scratch = allocate(job.scratch_bytes * static_cast<std::size_t>(job.blocks));
    if (job.scratch == nullptr) return no_memory();
  }
  if (const char* text = launch(job, stream)) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string("alignjax: ") + text);
  }
  return ffi::Error::Success();
} catch (const std::bad_alloc&) {
  return no_memory();
}

#ifdef ALIGNJAX_EMULATED

ffi::Error advance(ffi::RemainingArgs args, ffi::RemainingRets rets,
                   ffi::Span<const std::int64_t> widths, std::int64_t vertex,
                   std::int64_t lanes) {
  std::unique_ptr<Scratch> scratch;
  const auto allocate = [&](std::size_t bytes) {
    scratch = std::make_unique<Scratch>(bytes);
    return static_cast<char*>(scratch->get());
  };
  return run(nullptr, allocate, args, rets, widths, vertex, lanes);
}

#define ALIGNJAX_CONTEXT

#else

ffi::Error advance(CUstream_st* stream, ffi::ScratchAllocator allocator, ffi::RemainingArgs args,
                   ffi::RemainingRets rets, ffi::Span<const std::int64_t> widths,
                   std::int64_t vertex, std::int64_t lanes) {
  const auto allocate = [&](std::size_t bytes) {
    return static_cast<char*>(allocator.Allocate(bytes, 64).value_or(nullptr));
  };
  return run(stream, allocate, args, rets, widths, vertex, lanes);
}

#define ALIGNJAX_CONTEXT .Ctx<ffi::PlatformStream<CUstream_st*>>().Ctx<ffi::ScratchAllocator>()

#endif

XLA_FFI_DEFINE_HANDLER(advance_handler, advance,
                       ffi::Ffi::Bind() ALIGNJAX_CONTEXT.RemainingArgs()
                           .RemainingRets()
                           .Attr<ffi::Span<const std::int64_t>>("widths")
                           .Attr<std::int64_t>("vertex")
                           .Attr<std::int64_t>("lanes"));

}  // namespace
}  // namespace alignjax

ALIGNJAX_EXPORT XLA_FFI_Error* alignjax_gpu_advance(XLA_FFI_CallFrame* frame) {
  return alignjax::advance_handler(frame);
}

// To be raised whenever what Python hands over changes; see alignjax/engines/gpu/library.py.
ALIGNJAX_EXPORT int alignjax_gpu_interface() { return 1; }

// As `alignjax_xla` in ../ffi.cc.
ALIGNJAX_EXPORT int alignjax_gpu_xla() { return XLA_FFI_API_MAJOR * 1000 + XLA_FFI_API_MINOR; }

// A digest of the sources that this is compiled from.
ALIGNJAX_EXPORT const char* alignjax_gpu_sources() { return ALIGNJAX_SOURCES; }
