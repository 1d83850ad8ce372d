// Odd compositions for sign, or in their coupled form for the square root, of many small n × n matrices on a CPU.
//
// A stage is X ← X h(W) with W = X² and h(w) = a + bw + cw²; coupled, W = ZX, X ← X h(W), Z ← h(W) Z (see
// networks/composition.py, which also states the certificate that is checked here).  Matrices differ in how many stages
// they need, so the lanes of a register go their own ways: each has its own stage, and a lane whose matrix is accepted
// or refused takes the next matrix of the batch at once.  No operation mixes lanes, so that a result does not depend on
// its neighbours.
//
// Compiled by __init__.py with -DCOUPLED=0|1 besides what lanes.h asks for.

#include "lanes.h"

namespace {

struct Stage {
  double a, b, c;
  double limit;  // R² for the spectral radius of W; infinite where there is nothing to check
};

// The stages of one pass; the first of them wants A · scale / (a bound of its spectral radius).
struct Pass {
  const Stage* stages;
  int64_t count;
  double scale;
};

// What ends the passes of a matrix: a residual of `accepted` · max(1, ‖X‖²), X as scaled, at most `largest`, or their
// number.
struct Rule {
  double accepted, largest;
  int64_t passes;
  int64_t trust;  // check no certificate
};

// Of each matrix, as `Outcome` in networks/composition.py.
struct Record {
  real* scale;
  real* residual;
  int64_t* passes;
  uint8_t* hermitian;
  uint8_t* failed;
};

// Squarings of W before its spectral radius is called too large, as in kernels/composition.py.
constexpr int SHARPER = 3;

// --- one matrix -------------------------------------------------------------------------------------------------------

// Row by row in registers, real and imaginary parts apart, for what is asked of single matrices; what is left of the
// last register of a row is zero.
struct Single {
  static constexpr int BLOCKS = (N + W - 1) / W;
  real& operator()(int p, int i, int j) { return reinterpret_cast<real*>(row[p][i])[j]; }
  real operator()(int p, int i, int j) const { return reinterpret_cast<const real*>(row[p][i])[j]; }
  vec row[PARTS][N][BLOCKS];
};

inline void clear_margin(Single& A) {
  if constexpr (N % W != 0)
    for (int p = 0; p < PARTS; ++p)
      for (int i = 0; i < N; ++i)
        for (int j = N; j < Single::BLOCKS * W; ++j) A(p, i, j) = 0;
}

inline void square(const Single& A, Single& out) {
  for (int i = 0; i < N; ++i)
    for (int b = 0; b < Single::BLOCKS; ++b) {
      vec re = {}, im = {};
      for (int k = 0; k < N; ++k) {
        re += A(0, i, k) * A.row[0][k][b];
        if constexpr (PARTS == 2) {
          re -= A(1, i, k) * A.row[1][k][b];
          im += A(0, i, k) * A.row[1][k][b] + A(1, i, k) * A.row[0][k][b];
        }
      }
      out.row[0][i][b] = re;
      if constexpr (PARTS == 2) out.row[1][i][b] = im;
    }
}

inline real norm(const Single& A) {
  vec sums = {};
  for (int p = 0; p < PARTS; ++p)
    for (int i = 0; i < N; ++i)
      for (int b = 0; b < Single::BLOCKS; ++b) sums += A.row[p][i][b] * A.row[p][i][b];
  real total = 0;
  for (int l = 0; l < W; ++l) total += sums[l];
  return std::sqrt(total);
}

// Exactly: −0 counts as 0, and NaN as nothing.
inline bool is_hermitian(const Single& A) {
  for (int i = 0; i < N; ++i)
    for (int j = 0; j <= i; ++j) {
      if (!(A(0, i, j) == A(0, j, i))) return false;
      if (PARTS == 2 && !(A(PARTS - 1, i, j) == -A(PARTS - 1, j, i))) return false;
    }
  return true;
}

inline void read(const Source& A, int64_t at, Single& out) {
  const real* matrix = A.data + at * A.matrix;
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < N; ++j)
      for (int p = 0; p < PARTS; ++p) {
        const real entry = matrix[i * A.row + j * A.column + p];
        out(p, i, j) = p && A.conjugate ? -entry : entry;
      }
  clear_margin(out);
}

// --- one lane ---------------------------------------------------------------------------------------------------------

inline void put_lane(const Single& A, real scale, int lane, num* X) {
  vec* flat = reinterpret_cast<vec*>(X);
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < N; ++j)
      for (int p = 0; p < PARTS; ++p) flat[(i * N + j) * PARTS + p][lane] = scale * A(p, i, j);
}

inline void take_lane(const num* X, int lane, Single& A) {
  const vec* flat = reinterpret_cast<const vec*>(X);
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < N; ++j)
      for (int p = 0; p < PARTS; ++p) A(p, i, j) = flat[(i * N + j) * PARTS + p][lane];
  clear_margin(A);
}

inline void store_lane(const num* X, real scale, int lane, real* out) {
  const vec* flat = reinterpret_cast<const vec*>(X);
  for (int e = 0; e < REALS; ++e) out[e] = scale * flat[e][lane];
}

inline void put_identity(int lane, num* X) {
  vec* flat = reinterpret_cast<vec*>(X);
  for (int e = 0; e < REALS; ++e) flat[e][lane] = 0;
  for (int i = 0; i < N; ++i) flat[i * (N + 1) * PARTS][lane] = 1;
}

// --- a register -------------------------------------------------------------------------------------------------------

// ‖X‖_F² of each matrix.
inline vec square_norm(const num* X) {
  vec sums[4] = {};
  for (int e = 0; e < ENTRIES; ++e) sums[e % 4] += squared(X[e]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// ‖X‖_F² and ‖X − I‖_F² of each matrix.
inline void measure(const num* X, vec& whole, vec& apart) {
  vec off = {}, on = {}, shifted = {};
  for (int i = 0; i < N; ++i) {
    vec row[2] = {};
    for (int j = 0; j < N; ++j)
      if (j != i) row[j % 2] += squared(X[i * N + j]);
    off += row[0] + row[1];
    num diagonal = X[i * (N + 1)];
    on += squared(diagonal);
    add_real(diagonal, real(-1));
    shifted += squared(diagonal);
  }
  whole = off + on, apart = off + shifted;
}

// The matrices of a register, or the value–derivative pairs, on their way; `Z` only in the coupled form.
template <int MEMBERS>
struct State {
  static constexpr int LENGTH = MEMBERS * ENTRIES;
  static constexpr int64_t ROOM = (COUPLED ? 5 : 4) * int64_t(LENGTH);
  explicit State(num* room)
      : X(room), W(room + LENGTH), H(room + 2 * LENGTH), spare(room + 3 * LENGTH), Z(COUPLED ? room + 4 * LENGTH : X) {}

  // W = X², or ZX.
  void square() { product<MEMBERS>(COUPLED ? Z : X, X, W); }

  // H = W².
  void fourth() { product<MEMBERS>(W, W, H); }

  // X ← X h(W), Z ← h(W) Z, given W and H = W².
  template <class Weight>
  void advance(const Weight& a, const Weight& b, const Weight& c) {
    for (int e = 0; e < LENGTH; ++e) {
      num sum = scaled(H[e], c);
      scale_add(sum, vec{} + b, W[e]);
      H[e] = sum;
    }
    for (int i = 0; i < N; ++i) add_real(H[i * (N + 1)], a);
    product<MEMBERS>(X, H, spare);
    std::swap(X, spare);
    if constexpr (COUPLED) {
      product<MEMBERS>(H, Z, spare);
      std::swap(Z, spare);
    } else {
      Z = X;
    }
  }

  num *X, *W, *H, *spare, *Z;
};

// --- values -----------------------------------------------------------------------------------------------------------

struct Lane {
  int64_t at = -1;  // which matrix; none if negative
  const Pass* pass = nullptr;
  int64_t stage = 0, passes = 0;
  real scale = 0;
};

// Sends the matrices first … last − 1 through the lanes of a register.
class Stream {
 public:
  Stream(const Source& A, const Pass* kinds, const Rule& rule, const Record& record, real* out)
      : A_(A), kinds_(kinds), rule_(rule), record_(record), out_(out), room_(State<1>::ROOM), state_(room_.get()) {
    std::fill(room_.get(), room_.get() + State<1>::ROOM, num{});
  }

  // Returns whether any matrix failed.
  bool run(int64_t first, int64_t last) {
    for (int64_t next = first;;) {
      bool busy = false;
      for (int l = 0; l < W; ++l) {
        while (lanes_[l].at < 0 && next < last) begin(l, next++);
        busy |= lanes_[l].at >= 0;
      }
      if (!busy) return failed_;
      step();
    }
  }

 private:
  // Scales matrix `at` into a lane, unless it is refused right away.
  void begin(int l, int64_t at) {
    Single matrix, power;
    read(A_, at, matrix);
    const bool hermitian = is_hermitian(matrix);
    square(matrix, power);
    // The spectral radius is at most ‖A‖_F, and ‖A²‖_F^{1/2}.
    const real bound = std::min(norm(matrix), std::sqrt(norm(power)));
    lanes_[l] = {at, kinds_ + hermitian, 0, 0, 0};
    lanes_[l].scale = real(kinds_[hermitian].scale) / std::max(bound, std::numeric_limits<real>::min());
    record_.hermitian[at] = hermitian;
    // Infinite or NaN: nothing to compute.
    if (!(bound <= std::numeric_limits<real>::max()) && !rule_.trust) return end(l, infinity, false);
    put_lane(matrix, lanes_[l].scale, l, state_.X);
    if (COUPLED) put_identity(l, state_.Z);
  }

  // One stage of every lane.
  void step() {
    vec whole, apart, a = {}, b = {}, c = {};
    state_.square();
    measure(state_.W, whole, apart);
    settle(apart);
    bool open[W] = {}, any_open = false, busy = false;
    for (int l = 0; l < W; ++l) {
      if (lanes_[l].at < 0) continue;
      const Stage& stage = lanes_[l].pass->stages[lanes_[l].stage];
      a[l] = real(stage.a), b[l] = real(stage.b), c[l] = real(stage.c);
      const real radius = std::min(std::sqrt(whole[l]), 1 + std::sqrt(apart[l]));
      open[l] = !rule_.trust && stage.limit < infinity && !(radius <= real(stage.limit));
      any_open |= open[l], busy = true;
    }
    if (!busy) return;
    state_.fourth();
    if (any_open) {
      whole = square_norm(state_.H);
      for (int l = 0; l < W; ++l)
        if (open[l] && !within(l, whole[l], lanes_[l].pass->stages[lanes_[l].stage].limit)) end(l, infinity, false);
    }
    state_.advance(a, b, c);
    for (Lane& lane : lanes_) ++lane.stage;
  }

  // Ends the lanes that are at the end of a pass and need no other; `apart` is ‖W − I‖².
  void settle(const vec& apart) {
    vec size = {};
    bool known = false;
    for (int l = 0; l < W; ++l) {
      Lane& lane = lanes_[l];
      if (lane.at < 0 || lane.stage < lane.pass->count) continue;
      if (!known) size = square_norm(state_.X), known = true;
      lane.stage = 0, ++lane.passes;
      const real eta = std::sqrt(apart[l]);
      const bool accepted = eta <= tolerance(size[l]);
      const bool more = !accepted && eta <= std::numeric_limits<real>::max();
      if (more && lane.passes < rule_.passes) continue;
      end(l, eta, accepted);
    }
  }

  real tolerance(real size) const {
    return real(std::min(rule_.accepted * std::max(size, real(1)), rule_.largest));
  }

  // Whether ‖W^{2^k}‖ ≤ limit^{2^k} for some k; `fourth` is ‖W²‖_F².
  bool within(int l, real fourth, double limit) const {
    limit *= limit;
    if (std::sqrt(fourth) <= real(limit)) return true;
    Single power, next;
    take_lane(state_.H, l, power);
    for (int k = 2; k <= SHARPER; ++k) {
      square(power, next);
      limit *= limit;
      if (norm(next) <= real(limit)) return true;
      power = next;
    }
    return false;
  }

  // Records a lane's matrix, writes it if it is accepted, and frees the lane.
  void end(int l, real residual, bool accepted) {
    Lane& lane = lanes_[l];
    record_.scale[lane.at] = lane.scale;
    record_.residual[lane.at] = residual;
    record_.passes[lane.at] = lane.passes;
    record_.failed[lane.at] = !accepted && !rule_.trust;
    failed_ |= record_.failed[lane.at] != 0;
    if (out_ && !record_.failed[lane.at])
      store_lane(state_.X, COUPLED ? 1 / std::sqrt(lane.scale) : real(1), l, out_ + lane.at * REALS);
    lane.at = -1;
  }

  static constexpr real infinity = std::numeric_limits<real>::infinity();

  const Source& A_;
  const Pass* kinds_;
  const Rule& rule_;
  const Record& record_;
  real* out_;
  Workspace room_;
  State<1> state_;
  Lane lanes_[W];
  bool failed_ = false;
};

// --- derivatives ------------------------------------------------------------------------------------------------------

// out[at] = L(A[at], E[at]) of W matrices that take the same passes.
inline void differentiate(const Source& A, const Source& E, const int64_t* at, int lanes, const Pass& pass,
                          int64_t passes, const real* scales, num* room, real* out) {
  State<2> state(room);
  vec scale, after;
  for (int l = 0; l < W; ++l) scale[l] = scales[at[l]], after[l] = 1 / std::sqrt(scale[l]);
  load(A, at, real(1), state.X);
  load(E, at, real(1), state.X + ENTRIES);
  for (int e = 0; e < 2 * ENTRIES; ++e) state.X[e] = scaled(state.X[e], scale);
  if (COUPLED) {
    std::fill(state.Z, state.Z + 2 * ENTRIES, num{});
    for (int i = 0; i < N; ++i) add_real(state.Z[i * (N + 1)], real(1));
  }
  for (int64_t p = 0; p < passes; ++p)
    for (int64_t t = 0; t < pass.count; ++t) {
      const Stage& stage = pass.stages[t];
      state.square();
      state.fourth();
      state.advance(real(stage.a), real(stage.b), real(stage.c));
    }
  num* derivative = state.X + ENTRIES;
  if constexpr (!COUPLED) {
    // D ← ½(D − SDS), what SD + DS = 0 leaves: see kernels/composition.py.
    product<1>(state.X, derivative, state.W);
    product<1>(state.W, state.X, state.H);
    for (int e = 0; e < ENTRIES; ++e) {
      num sum = scaled(derivative[e], vec{} + real(0.5));
      scale_add(sum, vec{} + real(-0.5), state.H[e]);
      derivative[e] = sum;
    }
  }
  // (A/c²)^{1/2} = A^{1/2}/c, and the derivative scales alike: its direction was divided by c² too.
  if (COUPLED)
    for (int e = 0; e < ENTRIES; ++e) derivative[e] = scaled(derivative[e], after);
  store(derivative, at, lanes, out);
}

}  // namespace

// --- the face ---------------------------------------------------------------------------------------------------------
// Negative is out of memory.  `kinds` are the passes of general and of Hermitian matrices.

extern "C" {

// out = f(A) of the matrices whose certificate holds, and the record of all; the rows of the others are left alone.
// Without `out` only the record.  Returns 1 where a matrix failed.
int neural_expm_value(const Source* A, int64_t count, const Pass* kinds, const Rule* rule, const Record* record,
                      real* out, int64_t threads) {
  return guarded(count, threads, [&](int64_t first, int64_t last) {
    return int(Stream(*A, kinds, *rule, *record, out).run(first, last));
  });
}

// out = L(A, E) by the passes and the scale of each matrix; the rows of those with no passes are left alone.
int neural_expm_frechet(const Source* A, const Source* E, int64_t count, const Pass* kinds, int64_t most,
                        const uint8_t* hermitian, const int64_t* passes, const real* scales, real* out,
                        int64_t threads) {
  return guarded(count, threads, [&](int64_t first, int64_t last) {
    const Workspace workspace(State<2>::ROOM);
    std::vector<int64_t> like;
    for (int kind = 0; kind < 2; ++kind)
      for (int64_t p = 1; p <= most; ++p) {
        like.clear();
        for (int64_t i = first; i < last; ++i)
          if ((hermitian[i] != 0) == (kind != 0) && passes[i] == p) like.push_back(i);
        const int64_t found = int64_t(like.size());
        like.resize((found + W - 1) / W * W, found ? like[0] : 0);  // idle lanes repeat a matrix
        for (int64_t i = 0; i < found; i += W)
          differentiate(*A, *E, like.data() + i, int(std::min<int64_t>(W, found - i)), kinds[kind], p, scales,
                        workspace.get(), out);
      }
    return 0;
  });
}
}
