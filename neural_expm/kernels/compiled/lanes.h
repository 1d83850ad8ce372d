// What the compiled kernels share: the field, matrix products, reading and writing a batch, threads.
//
// One SIMD register holds the same entry of W matrices ("lanes"), so that every operation is full-width whatever n is
// and no entry of a matrix is ever shuffled.
//
// Compiled by __init__.py with -DSIZE=n -DREAL=float|double -DCOMPLEX=0|1.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr int N = SIZE;
constexpr int ENTRIES = N * N;
using real = REAL;

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int W = BYTES / sizeof(real);
typedef real vec __attribute__((vector_size(BYTES), may_alias));

// x in every lane.  (Minus zero, which a compiler may leave out, as it may not for plus zero: −0 + 0 = 0.)
inline vec all_lanes(real x) { return x - vec{}; }

// --- the field ------------------------------------------------------------------------------------------------------

// Weights are a real for all lanes, or a vec with one for each.
#if COMPLEX
struct num {
  vec re, im;
};
constexpr int PARTS = 2, ROWS = 2, COLUMNS = 2;
inline void multiply_add(num& sum, const num& a, const num& b) {
  sum.re += a.re * b.re;
  sum.im += a.re * b.im;
  sum.re -= a.im * b.im;
  sum.im += a.im * b.re;
}
inline void scale_add(num& sum, const vec& w, const num& a) { sum.re += w * a.re, sum.im += w * a.im; }
template <class Weight>
inline void add_real(num& sum, const Weight& w) { sum.re += w; }
template <class Weight>
inline num scaled(const num& a, const Weight& w) { return {a.re * w, a.im * w}; }
inline vec squared(const num& a) { return a.re * a.re + a.im * a.im; }
#else
typedef vec num;
// Tiles as large as the registers hold: AVX-512 has 32 of them, and a larger tile reads Y less often.
constexpr int PARTS = 1, ROWS = sizeof(vec) == 64 ? 4 : 2, COLUMNS = 4;
inline void multiply_add(num& sum, const num& a, const num& b) { sum += a * b; }
inline void scale_add(num& sum, const vec& w, const num& a) { sum += w * a; }
template <class Weight>
inline void add_real(num& sum, const Weight& w) { sum += w; }
template <class Weight>
inline num scaled(const num& a, const Weight& w) { return a * w; }
inline vec squared(const num& a) { return a * a; }
#endif

// --- products -------------------------------------------------------------------------------------------------------

// R × C nums of Z = X Y, or of Z += X Y, in registers.  A layout says how many nums a row has (STRIDE) and what of X goes
// with a row of Y (`factor`).
template <class Layout, int R, int C, bool ADD>
inline void tile(const num* X, const num* Y, num* Z, int i, int j) {
  constexpr int STRIDE = Layout::STRIDE;
  num sum[R][C];
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sum[r][c] = ADD ? Z[(i + r) * STRIDE + j + c] : num{};
  for (int k = 0; k < N; ++k) {
    num y[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) y[c] = Y[k * STRIDE + j + c];
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) {
      const num x = Layout::factor(X, i + r, k);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) multiply_add(sum[r][c], x, y[c]);
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) Z[(i + r) * STRIDE + j + c] = sum[r][c];
}

// An entry of W matrices in a num.
struct Entries {
  static constexpr int STRIDE = N;
  static num factor(const num* X, int i, int k) { return X[i * N + k]; }
};

template <int R, bool ADD>
inline void tile_row(const num* X, const num* Y, num* Z, int i) {
  for (int j = 0; j + COLUMNS <= N; j += COLUMNS) tile<Entries, R, COLUMNS, ADD>(X, Y, Z, i, j);
  if constexpr (N % COLUMNS != 0) tile<Entries, R, N % COLUMNS, ADD>(X, Y, Z, i, N - N % COLUMNS);
}

// Z = X Y, or Z += X Y.
template <bool ADD>
inline void multiply(const num* X, const num* Y, num* Z) {
  for (int i = 0; i + ROWS <= N; i += ROWS) tile_row<ROWS, ADD>(X, Y, Z, i);
  if constexpr (N % ROWS != 0) tile_row<N % ROWS, ADD>(X, Y, Z, N - N % ROWS);
}

// Of one matrix (MEMBERS = 1), or of a matrix and its derivative one after the other (MEMBERS = 2):
// (X + ε dX)(Y + ε dY) = XY + ε (dX Y + X dY).
template <int MEMBERS>
inline void product(const num* X, const num* Y, num* Z) {
  multiply<false>(X, Y, Z);
  if constexpr (MEMBERS == 2) {
    multiply<false>(X + ENTRIES, Y, Z + ENTRIES);
    multiply<true>(X, Y + ENTRIES, Z + ENTRIES);
  }
}

// --- memory ---------------------------------------------------------------------------------------------------------

struct Source {
  const real* data;
  int64_t matrix, row, column;  // strides, in reals
  int64_t conjugate;
};

constexpr int REALS = ENTRIES * PARTS;  // of one matrix; the re and im of a num follow each other as in torch

template <int D, std::size_t... L>
inline void exchange(vec& a, vec& b, std::index_sequence<L...>) {
  const vec low = __builtin_shufflevector(a, b, ((L & D) ? int(L) - D + W : int(L))...);
  b = __builtin_shufflevector(a, b, ((L & D) ? int(L) + W : int(L) + D)...);
  a = low;
}

template <int D = W / 2>
inline void transpose(vec* v) {
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i)
    if (!(i & D)) exchange<D>(v[i], v[i + D], std::make_index_sequence<W>());
  if constexpr (D > 1) transpose<D / 2>(v);
}

// X ← scale · A of W matrices, given by their first entries; matrices are read as whole registers where they lie in
// one piece (as rows, or as columns for a transposed view).
inline void load(const Source& A, const int64_t* at, real scale, num* X) {
  vec* flat = reinterpret_cast<vec*>(X);
  const real* matrix[W];
  for (int l = 0; l < W; ++l) matrix[l] = A.data + at[l] * A.matrix;
  const bool rows = A.column == PARTS && A.row == N * PARTS, columns = A.row == PARTS && A.column == N * PARTS;
  if (rows || columns) {
    int e = 0;
    for (; e + W <= REALS; e += W) {
      for (int l = 0; l < W; ++l) std::memcpy(flat + e + l, matrix[l] + e, sizeof(vec));
      transpose(flat + e);
    }
    for (; e < REALS; ++e)
      for (int l = 0; l < W; ++l) flat[e][l] = matrix[l][e];
    if (!rows)
      for (int i = 0; i < N; ++i)
        for (int j = 0; j < i; ++j) std::swap(X[i * N + j], X[j * N + i]);
  } else {
    for (int i = 0; i < N; ++i)
      for (int j = 0; j < N; ++j)
        for (int p = 0; p < PARTS; ++p)
          for (int l = 0; l < W; ++l) flat[(i * N + j) * PARTS + p][l] = matrix[l][i * A.row + j * A.column + p];
  }
  if (scale != 1)
    for (int e = 0; e < ENTRIES; ++e) X[e] = scaled(X[e], scale);
#if COMPLEX
  if (A.conjugate)
    for (int e = 0; e < ENTRIES; ++e) X[e].im = -X[e].im;
#endif
}

// out[at] ← X for the first `lanes` matrices; X is overwritten.
inline void store(num* X, const int64_t* at, int lanes, real* out) {
  vec* flat = reinterpret_cast<vec*>(X);
  int e = 0;
  for (; e + W <= REALS; e += W) {
    transpose(flat + e);
    for (int l = 0; l < lanes; ++l) std::memcpy(out + at[l] * REALS + e, flat + e + l, sizeof(vec));
  }
  for (; e < REALS; ++e)
    for (int l = 0; l < lanes; ++l) out[at[l] * REALS + e] = flat[e][l];
}

// --- the loop over the batch --------------------------------------------------------------------------------------------

// The threads of the OpenMP runtime that torch has loaded, where it is GNU's: they wait for work already, while a new
// thread comes late and finds the processors taken by those that wait.
extern "C" void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags) __attribute__((weak));
extern "C" int omp_get_thread_num() __attribute__((weak));
extern "C" int omp_get_num_threads() __attribute__((weak));

// Rows of a matrix.
struct Band {
  int first, last;
};

// Where the threads of a team wait for each other, without a word to the system, which takes longer than the wait.
struct Meeting {
  alignas(64) std::atomic<int> here{0};
  alignas(64) std::atomic<int> round{0};
  int said = 0;  // by the first of them, before a meeting

  void wait_for(int size) {
    const int now = round.load(std::memory_order_relaxed);
    if (here.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      here.store(0, std::memory_order_relaxed);
      round.store(now + 1, std::memory_order_release);
      return;
    }
    for (int patience = 10000; round.load(std::memory_order_acquire) == now;) {
      if (patience-- <= 0) patience = 0, std::this_thread::yield();  // the other has lost its processor
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }
};

// The threads that compute a matrix together, as one of them sees it: one by itself, or one of several.
struct Alone {
  static constexpr bool ALONE = true;
  static constexpr int index = 0, size = 1;
  void meet() const {}  // wait until all are here
  int agree(int own) const { return own; }  // on what the first one says; meets
};
struct Member {
  static constexpr bool ALONE = false;
  static constexpr int MOST = 8;  // more would wait for each other
  int index, size;
  int64_t apart = 0;  // nums from the stream of one of them to that of the next
  Meeting* meeting = nullptr;
  void meet() const { meeting->wait_for(size); }
  int agree(int own) const {
    if (index == 0) meeting->said = own;
    meet();
    return meeting->said;
  }
};

// body(member) in each of a team of threads; false where there are none that could wait for each other.
template <class Body>
bool as_team(int64_t threads, int64_t apart, const Body& body) {
  if (!(GOMP_parallel && omp_get_thread_num && omp_get_num_threads)) return false;
  Meeting meeting;
  const auto work = [&] { body(Member{omp_get_thread_num(), omp_get_num_threads(), apart, &meeting}); };
  using Work = decltype(work);
  GOMP_parallel([](void* data) { (*static_cast<Work*>(data))(); }, const_cast<void*>(static_cast<const void*>(&work)),
                unsigned(std::min<int64_t>(threads, Member::MOST)), 0);
  return true;
}

// body(part, first, last) for contiguous parts of the batch that begin at a multiple of GRAIN.
template <int GRAIN, class Body>
void in_threads(int64_t count, int64_t threads, const Body& body) {
  const int64_t groups = (count + GRAIN - 1) / GRAIN;
  threads = std::max<int64_t>(1, std::min(threads, groups));
  const auto part = [&](int64_t t) {
    const int64_t first = groups * t / threads * GRAIN;
    body(t, first, std::min(count, groups * (t + 1) / threads * GRAIN));
  };
  if (threads == 1) return part(0);
  if (GOMP_parallel && omp_get_thread_num && omp_get_num_threads) {
    const auto work = [&] {  // inside another parallel region there may be fewer threads than asked for
      for (int64_t t = omp_get_thread_num(); t < threads; t += omp_get_num_threads()) part(t);
    };
    using Work = decltype(work);
    GOMP_parallel([](void* data) { (*static_cast<Work*>(data))(); }, const_cast<void*>(static_cast<const void*>(&work)),
                  unsigned(threads), 0);
    return;
  }
  std::vector<std::thread> helpers;  // they live as long as the call
  for (int64_t t = 1; t < threads; ++t) {
    try {
      helpers.emplace_back(part, t);
    } catch (...) {  // no more threads to be had: do it here
      part(t);
    }
  }
  part(0);
  for (auto& helper : helpers) helper.join();
}

// Room for `count` nums, aligned for the registers.  A thread keeps its last one, if it is not large: to ask the system's
// allocator takes as long as a small matrix.
class Workspace {
 public:
  explicit Workspace(int64_t count) {
    Kept& kept = of_this_thread();
    if (kept.lent || count * int64_t(sizeof(num)) > MOST_KEPT) {
      memory_ = allocate(count);
      return;
    }
    if (kept.count < count) {
      release(std::exchange(kept.memory, nullptr));
      kept.count = 0;
      kept.memory = allocate(count);
      kept.count = count;
    }
    memory_ = kept.memory;
    kept.lent = true;
  }
  ~Workspace() {
    Kept& kept = of_this_thread();
    if (memory_ == kept.memory)
      kept.lent = false;
    else
      release(memory_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  num* get() const { return memory_; }

 private:
  static constexpr int64_t MOST_KEPT = 1 << 20;  // bytes
  struct Kept {
    num* memory = nullptr;
    int64_t count = 0;
    bool lent = false;
    ~Kept() { release(memory); }
  };
  static Kept& of_this_thread() {
    static thread_local Kept kept;
    return kept;
  }
  static num* allocate(int64_t count) {
    return static_cast<num*>(::operator new(count * sizeof(num), std::align_val_t(BYTES)));
  }
  static void release(num* memory) { ::operator delete(memory, std::align_val_t(BYTES)); }

  num* memory_;
};

// Calls body(first, last) on parts of the batch; the largest of its results, or negative where memory ran out: nothing is
// thrown across the face of a library.
template <int GRAIN = W, class Body>
int guarded(int64_t count, int64_t threads, const Body& body) noexcept try {
  threads = std::min(threads, (count + GRAIN - 1) / GRAIN);
  if (threads <= 1) return count ? body(0, count) : 0;
  std::vector<int> results(threads, 0);
  in_threads<GRAIN>(count, threads, [&](int64_t part, int64_t first, int64_t last) {
    try {
      if (first < last) results[part] = body(first, last);
    } catch (...) {
      results[part] = -1;
    }
  });
  const auto [least, most] = std::minmax_element(results.begin(), results.end());
  return *least < 0 ? *least : *most;
} catch (...) {
  return -1;
}

}  // namespace
