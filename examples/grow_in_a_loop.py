"""A growth policy in a plain training loop: handwritten digits, wider layers whenever the loss stalls."""

from pathlib import Path

import torch
from sklearn.datasets import load_digits

import graphnet as gn

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
order = torch.randperm(len(x))
train, test = order[:1400], order[1400:]

net = gn.Network(gn.mlp([64, 8, 8, 10]), seed=0)
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
net.attach(optimizer)  # its state follows every edit
policy = gn.load_policy(Path(__file__).parent / "policies" / "plateau_growth.yaml")

for step in range(1000):
    batch = train[torch.randint(len(train), (64,))]
    loss = torch.nn.functional.cross_entropy(net(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for outcome in policy.step(net, step=step, metrics={"loss": loss.item()}):
        if outcome.applied or outcome.status == "rejected":
            print(f"{outcome}; {outcome.cost.after.params:,} parameters")

accuracy = (net(x[test]).argmax(1) == y[test]).float().mean().item()
widths = {name: group.size for name, group in net.graph.groups.items() if not group.output}
print(f"test accuracy {accuracy:.3f} with widths {widths}")
