// exp and its Fréchet derivative for many small n × n matrices on a CPU.
//
// The residual stream of the W matrices of a register stays in the first-level cache; weights, depth and squarings are
// run-time arguments, so that one library serves every tier.

#include "lanes.h"

namespace {

// --- weighted sums of tokens ------------------------------------------------------------------------------------------

template <int OUT, int BLOCK>
inline void combine_block(const num* tokens, int length, int tokens_in, const real* w, num* out, int at) {
  num sum[OUT][BLOCK] = {};
  for (int t = 0; t < tokens_in; ++t) {
#pragma GCC unroll 8
    for (int o = 0; o < OUT; ++o) {
      const vec weight = vec{} + w[o * tokens_in + t];
#pragma GCC unroll 8
      for (int b = 0; b < BLOCK; ++b) scale_add(sum[o][b], weight, tokens[t * length + at + b]);
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < OUT; ++o)
#pragma GCC unroll 8
    for (int b = 0; b < BLOCK; ++b) out[o * length + at + b] = sum[o][b];
}

// out_o = Σ_t w[o, t] token_t for OUT outputs; tokens and outputs have `length` entries each.
template <int OUT, int LENGTH>
inline void combine(const num* tokens, int tokens_in, const real* w, num* out) {
  constexpr int BLOCK = PARTS == 2 ? 2 : 4;
  for (int at = 0; at + BLOCK <= LENGTH; at += BLOCK)
    combine_block<OUT, BLOCK>(tokens, LENGTH, tokens_in, w, out, at);
  constexpr int REST = LENGTH % BLOCK;
  if constexpr (REST != 0) combine_block<OUT, REST>(tokens, LENGTH, tokens_in, w, out, LENGTH - REST);
}

// --- a register -------------------------------------------------------------------------------------------------------

struct Network {
  const real* weights;  // scores and values of heads 2 … m, then the read-out, as EquivariantTransformer.packed
  int64_t products, squarings;
  double identity;
};

// One register's worth of matrices, all with the same network.
template <int MEMBERS>
inline void evaluate(const Source& A, const Source& E, const int64_t* at, int lanes, const Network& net, num* stream,
                     real* out) {
  constexpr int LENGTH = MEMBERS * ENTRIES;
  const int m = int(net.products);
  num* pair = stream + int64_t(m + 1) * LENGTH;
  const real scale = std::ldexp(real(1), -int(net.squarings));
  load(A, at, scale, stream);
  if constexpr (MEMBERS == 2) load(E, at, scale, stream + ENTRIES);
  product<MEMBERS>(stream, stream, stream + LENGTH);
  const real* w = net.weights;
  for (int h = 2; h <= m; ++h) {
    combine<2, LENGTH>(stream, h, w, pair);
    product<MEMBERS>(pair, pair + LENGTH, stream + h * LENGTH);
    w += 2 * h;
  }
  combine<1, LENGTH>(stream, m + 1, w, pair);
  for (int i = 0; i < N; ++i) add_real(pair[i * N + i], real(net.identity));
  num *now = pair, *spare = pair + LENGTH;
  for (int s = 0; s < net.squarings; ++s) {
    product<MEMBERS>(now, now, spare);
    std::swap(now, spare);
  }
  store(now + (MEMBERS - 1) * ENTRIES, at, lanes, out);
}

// --- norms ------------------------------------------------------------------------------------------------------------

// min(√(‖A‖₁‖A‖_∞), ‖A‖_F) of one matrix, safe from overflow; NaN where A has NaN.
real careful_norm(const Source& A, int64_t at) {
  real columns[N] = {}, widest = 0, tallest = 0, frobenius = 0;
  const real* matrix = A.data + at * A.matrix;
  for (int i = 0; i < N; ++i) {
    real row = 0;
    for (int j = 0; j < N; ++j) {
      const real* entry = matrix + i * A.row + j * A.column;
      const real modulus = PARTS == 2 ? std::hypot(entry[0], entry[PARTS - 1]) : std::abs(entry[0]);
      if (std::isnan(entry[0]) || std::isnan(entry[PARTS - 1])) return std::numeric_limits<real>::quiet_NaN();
      row += modulus;
      columns[j] += modulus;
      frobenius = std::hypot(frobenius, modulus);
    }
    widest = std::max(widest, row);
  }
  for (int j = 0; j < N; ++j) tallest = std::max(tallest, columns[j]);
  return std::min(frobenius, std::sqrt(widest) * std::sqrt(tallest));
}

inline vec root(vec x) {
  vec y;
  for (int l = 0; l < W; ++l) y[l] = std::sqrt(x[l]);
  return y;
}

inline vec larger(const vec& a, const vec& b) { return a > b ? a : b; }

// Level of W matrices: the first rung whose radius reaches the norm, `rungs` where none does.
inline void find_levels(const Source& A, const int64_t* at, const real* radii, int rungs, num* X, int* level) {
  load(A, at, 1, X);
  vec columns[N] = {}, widest = {}, tallest = {}, frobenius = {};
  for (int i = 0; i < N; ++i) {
    vec row = {};
    for (int j = 0; j < N; ++j) {
      const vec square = squared(X[i * N + j]);
#if COMPLEX
      const vec modulus = root(square);
#else
      const vec modulus = larger(X[i * N + j], -X[i * N + j]);
#endif
      frobenius += square;
      row += modulus;
      columns[j] += modulus;
    }
    widest = larger(row, widest);
  }
  for (int j = 0; j < N; ++j) tallest = larger(columns[j], tallest);
  const vec mixed = root(widest) * root(tallest), euclid = root(frobenius);
  const vec bound = mixed < euclid ? mixed : euclid;
  auto passed = bound != bound;  // zeros of the integer type of comparisons
  passed -= passed;
  for (int r = 0; r < rungs; ++r) passed += bound > radii[r];
  for (int l = 0; l < W; ++l) {
    level[l] = -int(passed[l]);
    // Squares out of range, or NaN, which comparisons lose: rare, so one by one.
    if (!(euclid[l] <= std::numeric_limits<real>::max())) {
      const real careful = careful_norm(A, at[l]);
      level[l] = 0;
      for (int r = 0; r < rungs; ++r) level[l] += !(careful <= radii[r]);
    }
  }
}

// --- a part of the batch ------------------------------------------------------------------------------------------------

// Matrices whose levels are sorted together: enough that registers fill up with like ones, few enough that the second
// look at them finds them in the cache.
constexpr int TILE = std::max(8 * W, std::min(512, (1 << 18) / int(REALS * sizeof(real)) / W * W));

// The matrices first … first + length − 1 in order of `level`; returns how many of them some rung serves.
inline int sort_by_level(const uint8_t* level, int64_t first, int length, int rungs, int64_t* order) {
  int begins[257] = {};
  for (int i = 0; i < length; ++i) ++begins[level[i] + 1];
  for (int r = 0; r <= rungs; ++r) begins[r + 1] += begins[r];
  for (int i = 0; i < length; ++i) order[begins[level[i]]++] = first + i;
  return begins[rungs - 1];
}

// Evaluates a tile, W matrices of the order at a time, by the deepest rung among them; `level`, of the tile, becomes what was used.
template <int MEMBERS>
inline void evaluate_tile(const Source& A, const Source& E, int64_t first, int length, int rungs, const Network* nets,
                          uint8_t* level, num* stream, real* out) {
  int64_t order[TILE + W];
  const int served = sort_by_level(level, first, length, rungs, order);
  for (int i = 0; i < served; i += W) {
    const int lanes = std::min(W, served - i);
    for (int l = lanes; l < W; ++l) order[i + l] = order[i];  // idle lanes repeat a matrix
    const uint8_t deepest = level[order[i + lanes - 1] - first];
    for (int l = 0; l < lanes; ++l) level[order[i + l] - first] = deepest;
    if (out) evaluate<MEMBERS>(A, E, order + i, lanes, nets[deepest], stream, out);
  }
}

int64_t room(const Network* nets, int64_t rungs, int members) {
  int64_t deepest = 1;
  for (int64_t r = 0; r < rungs; ++r) deepest = std::max(deepest, nets[r].products);
  return (deepest + 3) * members * ENTRIES;
}

}  // namespace

// --- the face ---------------------------------------------------------------------------------------------------------
// Negative is out of memory.

extern "C" {

// out = p(A/2^s)^(2^s) with the rung of each matrix, which is also written to `level` (`rungs` for a matrix that no
// rung serves: its rows are left alone, unless `trust` gives it the last rung).  Without `out` only the levels.
// Returns 1 where a matrix was not served.
int neural_expm_value(const Source* A, int64_t count, const real* radii, int64_t rungs, const Network* nets,
                      int64_t trust, uint8_t* level, real* out, int64_t threads) {
  return guarded(count, threads, [&](int64_t first, int64_t last) {
    const Workspace workspace(room(nets, rungs, 1));
    bool outside = false;
    for (int64_t tile = first; tile < last; tile += TILE) {
      const int length = int(std::min<int64_t>(TILE, last - tile));
      for (int i = 0; i < length; i += W) {
        int64_t at[W];
        int found[W];
        for (int l = 0; l < W; ++l) at[l] = tile + std::min(i + l, length - 1);
        find_levels(*A, at, radii, int(rungs), workspace.get(), found);
        for (int l = 0; l < std::min(W, length - i); ++l) {
          if (trust) found[l] = std::min(found[l], int(rungs) - 1);
          level[at[l]] = uint8_t(found[l]);
          outside |= found[l] == rungs;
        }
      }
      evaluate_tile<1>(*A, *A, tile, length, int(rungs), nets, level + tile, workspace.get(), out);
    }
    return int(outside);
  });
}

// out = L(A, E) by the rung of each matrix that `level` names.
int neural_expm_frechet(const Source* A, const Source* E, int64_t count, int64_t rungs, const Network* nets,
                        const uint8_t* level, real* out, int64_t threads) {
  return guarded(count, threads, [&](int64_t first, int64_t last) {
    const Workspace workspace(room(nets, rungs, 2));
    uint8_t used[TILE];
    for (int64_t tile = first; tile < last; tile += TILE) {
      const int length = int(std::min<int64_t>(TILE, last - tile));
      std::copy(level + tile, level + tile + length, used);
      evaluate_tile<2>(*A, *E, tile, length, int(rungs), nets, used, workspace.get(), out);
    }
    return 0;
  });
}
}
