"""The input pipeline, one room per step: sources, order, transforms, plan, graph, finish, loader."""
