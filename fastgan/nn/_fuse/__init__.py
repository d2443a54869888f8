"""The parts of :func:`fastgan.nn.fuse`.

===========  =======================================================================================
norms        InstanceNorms, and the fused modules that take their places
structure    who calls what in a model; asks all that follow
sequential   nn.Sequentials, and those that hand a residual to their last module
own_forward  a module's own forward as a graph, or why there is none
unrecorded   what a function does that such a trace would lose, read from its source
snapshot     what a trace may change, put back after it
pieces       modules that a method may call one by one
taken_apart  how one method uses a module, followed through its source
source       functions as syntax trees
following    additions, activations and paddings that a norm can take over
interior     the inside of a padded tensor, the residual of a block with a padded input
rewritten    classes whose forward is a changed graph
===========  =======================================================================================
"""
