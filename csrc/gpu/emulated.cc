// The kernels on the host, for tests: the threads of a block are taken one after the other, each up
// to the next barrier. They can be taken forwards or backwards; a result that depends on which one
// comes first lacks a barrier.
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "kernels.h"

namespace alignjax {
namespace {

constexpr std::size_t kStack = 256 * 1024;
constexpr double kBehind = 12345.0;

// What tests choose: the order of threads, and the bytes of shared memory.
bool backwards = false;
std::size_t shared_bytes = 232'448;  // a Hopper's

class Block {
 public:
  explicit Block(int count) : contexts_(count), stacks_(count), done_(count), flags_(count) {}

  void run(std::function<void(int)> body) {
    body_ = std::move(body);
    const int count = static_cast<int>(contexts_.size());
    for (int i = 0; i < count; ++i) {
      stacks_[i] = std::make_unique<char[]>(kStack);
      getcontext(&contexts_[i]);
      contexts_[i].uc_stack.ss_sp = stacks_[i].get();
      contexts_[i].uc_stack.ss_size = kStack;
      contexts_[i].uc_link = &outside_;
      done_[i] = false;
      makecontext(&contexts_[i], reinterpret_cast<void (*)()>(&Block::enter), 0);
    }
    for (int left = count; left > 0;) {
      for (int i = 0; i < count; ++i) {
        now_ = backwards ? count - 1 - i : i;
        if (done_[now_]) continue;
        current = this;
        swapcontext(&outside_, &contexts_[now_]);
        if (done_[now_]) --left;
      }
    }
  }

  void barrier() { swapcontext(&contexts_[now_], &outside_); }

  bool all(int index, bool x) {
    flags_[index] = x;
    barrier();
    bool out = true;
    for (const char flag : flags_) out = out && flag;
    barrier();
    return out;
  }

  int count() const { return static_cast<int>(contexts_.size()); }

 private:
  static void enter() {
    Block* block = current;
    const int index = block->now_;
    block->body_(index);
    block->done_[index] = true;
  }

  static Block* current;
  std::function<void(int)> body_;
  std::vector<ucontext_t> contexts_;
  std::vector<std::unique_ptr<char[]>> stacks_;
  std::vector<char> done_, flags_;
  ucontext_t outside_{};
  int now_ = 0;
};

Block* Block::current = nullptr;

struct BlockThreads {
  Block* block;
  int index_;

  int index() const { return index_; }
  int count() const { return block->count(); }
  void barrier() const { block->barrier(); }
  bool all(bool x) const { return block->all(index_, x); }
};

template <class T>
bool run_lanes(const Job& job) {
  return with_lane<T>(job.widths[0], job.depth, [&](auto k, auto d) {
    for (std::int64_t i = 0; i < job.networks; ++i) {
      lane<T, static_cast<int>(k.value), static_cast<int>(d.value)>(job, i);
    }
  });
}

}  // namespace

const char* find_room(Job& job) {
  job.room = shared_bytes;
  return nullptr;
}

const char* find_blocks(Job& job) {
  job.blocks = job.networks < 2 ? job.networks : 2;
  return nullptr;
}

const char* launch(const Job& job, void*) {
  if (job.lanes) {
    const bool known = job.item == 4 ? run_lanes<float>(job) : run_lanes<double>(job);
    return known ? nullptr : "no kernel by lanes has these widths";
  }
  const char* error = nullptr;
  with_tiles(job, [&](auto number, auto side) {
    using T = decltype(number);
    constexpr int R = static_cast<int>(side.value);
    for (std::int64_t at = 0; at < job.blocks; ++at) {
      // As on a card, it holds anything at first; what lies behind is to stay as it is.
      const std::size_t length = job.on_chip / sizeof(double), behind = 64;
      std::vector<double> shared(length + behind, __builtin_nan(""));
      std::fill(shared.begin() + length, shared.end(), kBehind);
      Block block(job.threads);
      block.run([&](int thread) {
        tiles<T, R>(job, BlockThreads{&block, thread}, reinterpret_cast<char*>(shared.data()), at);
      });
      for (std::size_t i = 0; i < behind; ++i) {
        if (shared[length + i] != kBehind) error = "a kernel wrote behind its shared memory";
      }
    }
  });
  return error;
}

}  // namespace alignjax

// Whether threads are taken backwards, and how many bytes of shared memory there are.
extern "C" __attribute__((visibility("default"))) void alignjax_emulate(int backwards,
                                                                        std::int64_t bytes) {
  alignjax::backwards = backwards != 0;
  alignjax::shared_bytes = static_cast<std::size_t>(bytes);
}
