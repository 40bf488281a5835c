// The way in from XLA for networks, and the choice of an instruction set.
#include "call.h"
#include "layout.h"

namespace alignjax {

#if defined(__x86_64__)
extern const InstructionSet avx512, avx2, sse2;
#else
extern const InstructionSet generic;
#endif

namespace {

// Those that run on this machine, the fastest first.
std::vector<const InstructionSet*> instruction_sets() {
  std::vector<const InstructionSet*> out;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
    out.push_back(&avx512);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) out.push_back(&avx2);
  out.push_back(&sse2);
#else
  out.push_back(&generic);
#endif
  return out;
}

std::atomic<const InstructionSet*> selected{instruction_sets().front()};

enum Operand { kRates, kInput, kCross, kMinimizer, kSlope, kEnergy, kFloor, kWeights };

// All networks of one call.
struct Job : Packs {
  Sizes batch, widths;
  std::int64_t networks = 1, steps = 0, per_pack = 1;
  Shape shape{};
  Layout layout = Layout::kBest;
  bool columns = false;
  const InstructionSet* set = nullptr;
  std::vector<Batched> operands;  // as in Operand, the layers from kWeights on
  std::vector<Batched> results;   // taken, then the layers
};

template <class T>
Network<T> network(const Job& job, std::int64_t index, const T** weights, T** results) {
  const auto at = [&](int operand) {
    return reinterpret_cast<const T*>(job.operands[operand].at(index, job.batch));
  };
  for (std::int64_t i = 0; i < job.shape.depth; ++i) {
    weights[i] = at(kWeights + static_cast<int>(i));
    results[i] = reinterpret_cast<T*>(job.results[1 + i].at(index, job.batch));
  }
  return {weights,        results,    at(kRates),  at(kInput), at(kCross),
          at(kMinimizer), at(kSlope), at(kEnergy), at(kFloor),
          reinterpret_cast<std::int32_t*>(job.results[0].at(index, job.batch))};
}

// What a thread needs to take packs.
template <class T>
struct Workspace {
  explicit Workspace(const Job& job) : scratch(bytes(job)) {
    const auto depth = static_cast<std::size_t>(job.shape.depth);
    nets.resize(job.per_pack);
    weights.resize(job.per_pack * depth);
    results.resize(job.per_pack * depth);
  }

  static std::size_t bytes(const Job& job) {
    const Kernels<T>& kernel = kernels<T>(*job.set);
    return job.columns ? kernel.columns_scratch(job.shape) : kernel.lanes_scratch(job.shape);
  }

  Scratch scratch;
  std::vector<Network<T>> nets;
  std::vector<const T*> weights;
  std::vector<T*> results;
};

// Takes packs until none is left. Throws, if at all, before it takes one.
template <class T>
void work(Job& job) {
  if (job.taken()) return;
  Workspace<T> space(job);
  const FlushSubnormals flush;
  const Kernels<T>& kernel = kernels<T>(*job.set);
  const auto depth = static_cast<std::size_t>(job.shape.depth);
  job.take([&](std::int64_t pack) {
    const std::int64_t first = pack * job.per_pack;
    const std::int64_t count = std::min(job.per_pack, job.networks - first);
    for (std::int64_t i = 0; i < count; ++i) {
      space.nets[i] =
          network<T>(job, first + i, &space.weights[i * depth], &space.results[i * depth]);
    }
    if (job.columns) {
      kernel.advance_columns(job.shape, space.nets[0], job.steps, space.scratch.get());
    } else {
      kernel.advance_lanes(job.shape, space.nets.data(), static_cast<int>(count), job.steps,
                           space.scratch.get());
    }
  });
}

double multiplications(const Job& job) {
  double largest = 1;
  for (const auto width : job.widths) largest = std::max(largest, static_cast<double>(width));
  return 3.0 * largest * largest * largest * static_cast<double>(job.shape.depth) *
         static_cast<double>(job.networks) * static_cast<double>(job.steps + 1);
}

// No steps: the segment before the first save point, say.
void stand_still(const Job& job, std::size_t item) {
  for (std::int64_t index = 0; index < job.networks; ++index) {
    for (std::int64_t i = 0; i < job.shape.depth; ++i) {
      std::memcpy(job.results[1 + i].at(index, job.batch),
                  job.operands[kWeights + i].at(index, job.batch),
                  item * static_cast<std::size_t>(job.widths[i] * job.widths[i + 1]));
    }
    *reinterpret_cast<std::int32_t*>(job.results[0].at(index, job.batch)) = 0;
  }
}

template <class T>
ffi::Error run(ffi::ThreadPool& pool, const std::shared_ptr<Job>& job) {
  const std::int64_t lanes = kernels<T>(*job->set).lanes;
  job->columns = job->layout == Layout::kColumns ||
                 (job->layout == Layout::kBest &&
                  by_columns(job->widths, job->shape.vertex, sizeof(T), lanes, job->networks,
                             std::max<std::int64_t>(pool.num_threads(), 1)));
  job->per_pack = job->columns ? 1 : lanes;
  job->packs = (job->networks + job->per_pack - 1) / job->per_pack;
  return share(pool, job, multiplications(*job), work<T>);
}

// Operands: steps, rates, Sigma_xx, Sigma_yx, W*, the slope there, energy, floor, W_1, ..., W_d.
// Results: taken, W_1, ..., W_d.
ffi::Error checked_advance(ffi::ThreadPool& pool, ffi::RemainingArgs& args,
                           ffi::RemainingRets& rets, std::int64_t vertex, std::int64_t layout) {
  const std::size_t depth = rets.size() - 1;
  if (rets.size() < 2 || args.size() != 1 + kWeights + depth) {
    return invalid("operands are missing");
  }
  auto taken = rets.get<ffi::AnyBuffer>(0);
  auto steps = args.get<ffi::AnyBuffer>(0);
  if (!taken || !steps) return invalid("operands cannot be read");
  if (steps->element_type() != ffi::S32 || steps->element_count() != 1) {
    return invalid("steps must be one int32");
  }
  auto job = std::make_shared<Job>();
  job->layout = static_cast<Layout>(layout);
  job->set = selected_set();
  job->steps = *steps->typed_data<std::int32_t>();
  const auto lead = (*taken)->dimensions();
  job->batch.assign(lead.begin(), lead.end());
  for (const auto size : job->batch) job->networks *= size;
  if (job->networks == 0) return ffi::Error::Success();

  std::vector<ffi::AnyBuffer> operands;
  for (std::size_t i = 1; i < args.size(); ++i) {
    auto operand = args.get<ffi::AnyBuffer>(i);
    if (!operand) return invalid("operands cannot be read");
    operands.push_back(*operand);
  }
  const auto dtype = operands[kRates].element_type();
  if (dtype != ffi::F32 && dtype != ffi::F64) return invalid("weights must be float32 or float64");
  const std::size_t item = dtype == ffi::F32 ? 4 : 8;
  for (std::size_t i = 0; i < depth; ++i) {
    const auto dims = operands[kWeights + i].dimensions();
    if (dims.size() != job->batch.size() + 2) return invalid("weights must be matrices");
    if (i == 0) job->widths.push_back(dims.back());
    job->widths.push_back(dims[dims.size() - 2]);
  }
  const auto inputs = job->widths.front(), outputs = job->widths.back();
  std::vector<Sizes> shapes = {
      {static_cast<std::int64_t>(depth)}, {inputs, inputs}, {outputs, inputs}, {outputs, inputs},
      {outputs, inputs},                  {},               {}};
  for (std::size_t i = 0; i < depth; ++i) {
    shapes.push_back({job->widths[i + 1], job->widths[i]});
  }
  job->operands.resize(operands.size());
  for (std::size_t i = 0; i < operands.size(); ++i) {
    if (operands[i].element_type() != dtype ||
        !place(operands[i].dimensions(), operands[i].untyped_data(), item, job->batch, shapes[i],
               job->operands[i])) {
      return invalid("operand " + std::to_string(i + 1) + " does not fit");
    }
  }
  job->results.resize(1 + depth);
  if (!place(lead, (*taken)->untyped_data(), 4, job->batch, {}, job->results[0])) {
    return invalid("taken does not fit");
  }
  for (std::size_t i = 0; i < depth; ++i) {
    auto result = rets.get<ffi::AnyBuffer>(1 + i);
    if (!result || (*result)->element_type() != dtype ||
        !place((*result)->dimensions(), (*result)->untyped_data(), item, job->batch,
               shapes[kWeights + i], job->results[1 + i])) {
      return invalid("result " + std::to_string(i + 1) + " does not fit");
    }
  }
  if (vertex < 0 || vertex > static_cast<std::int64_t>(depth)) return invalid("vertex is no index");
  if (layout < 0 || layout > 2) return invalid("layout is none of three");
  job->shape = {job->widths.data(), static_cast<std::int64_t>(depth), vertex};
  if (job->steps <= 0) {
    stand_still(*job, item);
    return ffi::Error::Success();
  }
  return dtype == ffi::F32 ? run<float>(pool, job) : run<double>(pool, job);
}

// XLA is not prepared for exceptions.
ffi::Error advance(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                   std::int64_t vertex, std::int64_t layout) noexcept {
  try {
    return checked_advance(pool, args, rets, vertex, layout);
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
}

}  // namespace

const InstructionSet* selected_set() { return selected.load(); }

XLA_FFI_DEFINE_HANDLER(advance_handler, advance,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attr<std::int64_t>("vertex")
                           .Attr<std::int64_t>("layout"));

}  // namespace alignjax

ALIGNJAX_EXPORT XLA_FFI_Error* alignjax_advance(XLA_FFI_CallFrame* frame) {
  return alignjax::advance_handler(frame);
}

// To be raised whenever what Python hands over changes; see library.py.
ALIGNJAX_EXPORT int alignjax_interface() { return 2; }

// The version of XLA's foreign calls that this is compiled for.
ALIGNJAX_EXPORT int alignjax_xla() { return XLA_FFI_API_MAJOR * 1000 + XLA_FFI_API_MINOR; }

// A digest of the sources that this is compiled from.
ALIGNJAX_EXPORT const char* alignjax_sources() { return ALIGNJAX_SOURCES; }

// The name of the i-th instruction set that runs here, the fastest first, or null.
ALIGNJAX_EXPORT const char* alignjax_instruction_set(int i) {
  const auto sets = alignjax::instruction_sets();
  return i >= 0 && i < static_cast<int>(sets.size()) ? sets[i]->name : nullptr;
}

// The name of the one in use.
ALIGNJAX_EXPORT const char* alignjax_selected() { return alignjax::selected_set()->name; }

// Chooses one of them; whether there is one of that name.
ALIGNJAX_EXPORT int alignjax_select(const char* name) {
  for (const auto* set : alignjax::instruction_sets()) {
    if (std::strcmp(set->name, name) == 0) {
      alignjax::selected = set;
      return 1;
    }
  }
  return 0;
}
