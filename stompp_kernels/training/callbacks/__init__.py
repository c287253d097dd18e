"""A progression in the training loops of others.

A loop of one's own needs no callback: it calls ``progression.step()`` after each ``optimizer.step()``::

    progression = sk.StoMPP(model, total_steps=epochs * len(loader))
    for x, y in batches:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
        progression.step()

In ``transformers.Trainer`` (``pip install "stompp_kernels[transformers]"``)::

    from stompp_kernels.training.callbacks.hf_trainer import StoMPPTrainerCallback

    model, report = sk.prepare(model, example_inputs)
    callback = StoMPPTrainerCallback(regime="ste_free", order="forward")  # options of sk.StoMPP
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback])
    trainer.train()  # or trainer.train(resume_from_checkpoint=True)

In Lightning (``pip install "stompp_kernels[lightning]"``)::

    from stompp_kernels.training.callbacks.lightning import StoMPPCallback

    module.model, report = sk.prepare(module.model, example_inputs)  # before configure_optimizers
    callback = StoMPPCallback(module="model", regime="ste")
    trainer = lightning.pytorch.Trainer(max_epochs=100, callbacks=[callback])
    trainer.fit(module, loader)  # or trainer.fit(module, loader, ckpt_path="last")

Either library is imported by the file that is named after it, and by nothing else.
"""
