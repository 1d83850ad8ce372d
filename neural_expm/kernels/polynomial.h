// The polynomial of an equivariant transformer, its squarings and its derivative, for whatever layout the tokens have.
//
// A layout says how many nums a matrix takes (TOKEN) and how to load, store, multiply and add the identity; weights, depth
// and squarings are run-time arguments, so that one library serves every tier.

#pragma once

#include "lanes.h"

namespace {

// --- weighted sums of tokens ------------------------------------------------------------------------------------------

template <int OUT, int BLOCK>
inline void combine_block(const num* tokens, int length, int tokens_in, const real* w, num* out, int at) {
  num sum[OUT][BLOCK] = {};
  for (int t = 0; t < tokens_in; ++t) {
#pragma GCC unroll 8
    for (int o = 0; o < OUT; ++o) {
      const vec weight = all_lanes(w[o * tokens_in + t]);
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

// --- the network ------------------------------------------------------------------------------------------------------

struct Network {
  const real* weights;  // scores and values of heads 2 … m, then the read-out, as EquivariantTransformer.packed
  int64_t products, squarings;
  double identity;
};

// p(A/2^s)^(2^s) from the token A/2^s at the head of the stream (and the one of (A/2^s)² behind it, where it is known);
// of a matrix, or of a matrix and its derivative (MEMBERS = 2).  Returns where the result lies.
template <class Layout, int MEMBERS>
inline num* evaluate(const Network& net, num* stream, bool square_known) {
  constexpr int LENGTH = MEMBERS * Layout::TOKEN;
  const int m = int(net.products);
  num* pair = stream + int64_t(m + 1) * LENGTH;
  if (!square_known) Layout::template product<MEMBERS>(stream, stream, stream + LENGTH);
  const real* w = net.weights;
  for (int h = 2; h <= m; ++h) {
    combine<2, LENGTH>(stream, h, w, pair);
    Layout::template product<MEMBERS>(pair, pair + LENGTH, stream + h * LENGTH);
    w += 2 * h;
  }
  combine<1, LENGTH>(stream, m + 1, w, pair);
  Layout::add_identity(pair, real(net.identity));
  num *now = pair, *spare = pair + LENGTH;
  for (int s = 0; s < net.squarings; ++s) {
    Layout::template product<MEMBERS>(now, now, spare);
    std::swap(now, spare);
  }
  return now + (MEMBERS - 1) * Layout::TOKEN;
}

// Room for the stream and for the scores and values of a head.
template <class Layout>
inline int64_t room(const Network* nets, int64_t rungs, int members) {
  int64_t deepest = 1;
  for (int64_t r = 0; r < rungs; ++r) deepest = std::max(deepest, nets[r].products);
  return (deepest + 3) * members * Layout::TOKEN;
}

inline real scale_of(const Network& net) { return std::ldexp(real(1), -int(net.squarings)); }

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

}  // namespace
