// The clusters of cooperative_groups.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct cluster_group {
  static void sync() { simt::cluster_barrier(); }
  static unsigned block_rank() { return simt::cluster_rank(); }
  static unsigned num_blocks() { return simt::cluster_size(); }
  template <class T>
  static T* map_shared_rank(T* shared, unsigned rank) {
    return static_cast<T*>(simt::shared_of_rank(shared, rank));
  }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
