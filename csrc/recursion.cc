// The way in from XLA for the recursion in singular values.
#include "call.h"

namespace alignjax {
namespace {

enum Operand { kRates, kInput, kTarget, kMinimizer, kFloor, kValues };

// All runs of one call.
struct Recursions : Packs {
  Sizes batch;
  std::int64_t runs = 1, steps = 0;
  ModesShape shape{};
  bool shared = false;
  const InstructionSet* set = nullptr;
  std::vector<Batched> operands;  // as in Operand, the layers from kValues on
  std::vector<Batched> results;   // taken, then the layers
};

// Takes packs until none is left. Throws, if at all, before it takes one.
template <class T>
void work(Recursions& job) {
  if (job.taken()) return;
  const Kernels<T>& kernel = kernels<T>(*job.set);
  const Scratch scratch(kernel.modes_scratch(job.shape));
  const auto depth = static_cast<std::size_t>(job.shape.depth);
  std::vector<Modes<T>> runs(job.shape.runs);
  std::vector<const T*> values(job.shape.runs * depth);
  std::vector<T*> results(job.shape.runs * depth);
  const FlushSubnormals flush;
  job.take([&](std::int64_t pack) {
    const std::int64_t first = pack * job.shape.runs;
    const std::int64_t count = std::min(job.shape.runs, job.runs - first);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto at = [&](const Batched& where) {
        return reinterpret_cast<T*>(where.at(first + i, job.batch));
      };
      for (std::size_t layer = 0; layer < depth; ++layer) {
        values[i * depth + layer] = at(job.operands[kValues + layer]);
        results[i * depth + layer] = at(job.results[1 + layer]);
      }
      runs[i] = {&values[i * depth],
                 &results[i * depth],
                 at(job.operands[kRates]),
                 at(job.operands[kInput]),
                 at(job.operands[kTarget]),
                 at(job.operands[kMinimizer]),
                 at(job.operands[kFloor]),
                 reinterpret_cast<std::int32_t*>(job.results[0].at(first + i, job.batch))};
    }
    kernel.advance_modes(job.shape, runs.data(), static_cast<int>(count), job.steps, job.shared,
                         scratch.get());
  });
}

// Enough for many vectors, few enough for a cache and for all threads to have some.
constexpr std::int64_t kMost = 32, kFewest = 4;

template <class T>
ffi::Error run(ffi::ThreadPool& pool, const std::shared_ptr<Recursions>& job) {
  const std::int64_t lanes = kernels<T>(*job->set).lanes;
  const std::int64_t rank = std::max<std::int64_t>(job->shape.rank, 1);
  const std::int64_t threads = std::max<std::int64_t>(1, pool.num_threads());
  const std::int64_t share_of_one = (job->runs + threads - 1) / threads;
  const std::int64_t runs = std::max(std::min(share_of_one, kMost * lanes / rank),
                                     kFewest * lanes / rank);
  job->shape.runs = std::clamp<std::int64_t>(runs, 1, job->runs);
  job->packs = (job->runs + job->shape.runs - 1) / job->shape.runs;
  const double multiplications = 5.0 * static_cast<double>(job->shape.depth) *
                                 static_cast<double>(rank) * static_cast<double>(job->runs) *
                                 static_cast<double>(job->steps + 1) / static_cast<double>(lanes);
  return share(pool, job, multiplications, work<T>);
}

// Operands: steps, rates, lambda, lambda', p*, floor, s_1, ..., s_d. Results: taken, s_1, ..., s_d.
ffi::Error checked_recursion(ffi::ThreadPool& pool, ffi::RemainingArgs& args,
                             ffi::RemainingRets& rets) {
  const std::size_t depth = rets.size() - 1;
  if (rets.size() < 2 || args.size() != 1 + kValues + depth) {
    return invalid("operands are missing");
  }
  auto taken = rets.get<ffi::AnyBuffer>(0);
  auto steps = args.get<ffi::AnyBuffer>(0);
  auto values = args.get<ffi::AnyBuffer>(1 + kValues);
  if (!taken || !steps || !values) return invalid("operands cannot be read");
  if (steps->element_type() != ffi::S32 || steps->element_count() != 1) {
    return invalid("steps must be one int32");
  }
  auto job = std::make_shared<Recursions>();
  job->set = selected_set();
  job->steps = *steps->typed_data<std::int32_t>();
  const auto lead = (*taken)->dimensions();
  job->batch.assign(lead.begin(), lead.end());
  for (const auto size : job->batch) job->runs *= size;
  if (job->runs == 0) return ffi::Error::Success();
  const auto dtype = values->element_type();
  if (dtype != ffi::F32 && dtype != ffi::F64) return invalid("values must be float32 or float64");
  const std::size_t item = dtype == ffi::F32 ? 4 : 8;
  if (values->dimensions().size() != lead.size() + 1) return invalid("values must be vectors");
  job->shape.depth = static_cast<std::int64_t>(depth);
  job->shape.rank = values->dimensions().back();
  const Sizes modes = {job->shape.rank}, layers = {job->shape.depth}, scalar = {};
  job->operands.resize(kValues + depth);
  for (std::size_t i = 0; i < job->operands.size(); ++i) {
    auto operand = args.get<ffi::AnyBuffer>(1 + i);
    const Sizes& shape = i == kRates ? layers : i == kFloor ? scalar : modes;
    if (!operand || operand->element_type() != dtype ||
        !place(operand->dimensions(), operand->untyped_data(), item, job->batch, shape,
               job->operands[i])) {
      return invalid("operand " + std::to_string(i + 1) + " does not fit");
    }
  }
  job->shared = job->operands[kInput].shared() && job->operands[kTarget].shared() &&
                job->operands[kMinimizer].shared() && job->operands[kFloor].shared();
  job->results.resize(1 + depth);
  for (std::size_t i = 0; i <= depth; ++i) {
    auto result = rets.get<ffi::AnyBuffer>(i);
    if (!result || (*result)->element_type() != (i == 0 ? ffi::S32 : dtype) ||
        !place((*result)->dimensions(), (*result)->untyped_data(), i == 0 ? 4 : item, job->batch,
               i == 0 ? scalar : modes, job->results[i])) {
      return invalid("result " + std::to_string(i) + " does not fit");
    }
  }
  return dtype == ffi::F32 ? run<float>(pool, job) : run<double>(pool, job);
}

// XLA is not prepared for exceptions.
ffi::Error recursion(ffi::ThreadPool pool, ffi::RemainingArgs args,
                     ffi::RemainingRets rets) noexcept {
  try {
    return checked_recursion(pool, args, rets);
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(
    recursion_handler, recursion,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets());

}  // namespace alignjax

ALIGNJAX_EXPORT XLA_FFI_Error* alignjax_recursion(XLA_FFI_CallFrame* frame) {
  return alignjax::recursion_handler(frame);
}
