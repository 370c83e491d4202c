"""Measures that know the files and splits of the benchmarks.

`postures`: AUC of posture retrieval (Table 1). `pose` over the joints of `skeletons`: PCP, PCKh and copied
poses (Tables 2-4). `voting`: object classes by the nearest labeled samples (Table 5).
"""
