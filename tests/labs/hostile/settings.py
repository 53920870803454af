"""Points 5 and 7: settings that are wrong are refused by name, and no secret is in what is shown or left."""

from collections.abc import Callable

from tests.labs.hostile.ground import Ran, Site
from tests.labs.hostile.tries import Try

SECRET = "c4nary99X7qpL9mRt2"
DRY = ("promote", "{config}", "--dry-run")

#: Override, and what its refusal says.
WRONG = (
    ("seed=.nan", "seed: .*finite"),
    ("seed=-1", "seed: .*greater than or equal to 0"),
    ("seed=9223372036854775808", "seed: should be a whole number of less than 2.63"),
    ("seed=yes", "seed: yes is read as true"),
    ("output=memory://x", "output: memory:// is empty in every new process"),
    ("output=~/x", "output: ~ is not replaced"),
    ("output=''", "output: is empty"),
    ("campaign=../x", "campaign: .*pattern"),
    ("snapshot.source=[]", "snapshot.source: .*at least 1 item"),
    ("snapshot.classes=[]", "snapshot.classes: .*at least 1 item"),
    ('snapshot.columns.text="a\\nb"', "snapshot.columns.text: has control characters"),
    ("labels.signal.temperatures=[1e-300]", "labels.signal.temperatures.0: is 1e-300, beyond the numbers of 32 bits"),
    ("labels.signal.temperatures=[0.001]", "labels.signal.temperatures.0: .*greater than or equal to 0.01"),
    ("labels.teacher.max_length=2", "max_length 2 leaves no room for a text"),
    ("labels.resources.batch='64'", "labels.resources.batch: is a text"),
    ("labels.store='ftp://u:p@h/x'", "labels.store: has a password"),
    ("student.losses={soft: {weight: 0}}", "student.losses: every loss has the weight 0"),
    ("student.losses.soft.weight=-.inf", "student.losses.soft.weight: .*finite"),
    ("student.training.epochs=1e9", "student.training.epochs: .*less than or equal to"),
    ("student.training.workers=true", "student.training.workers: "),
    ("student.training.deepspeed={a: .nan}", "student.training.deepspeed.a: should be a finite number"),
    ("evaluation.bootstrap=999999999999", "evaluation.bootstrap: .*less than or equal to 1000000"),
    ("gate.model_name=a/b", "gate.model_name: "),
    ("tracking.uri='sqlite:///~/x.db'", "tracking.uri: .*is not replaced here"),
    ("tracking.enabled='no'", "tracking.enabled: is a text"),
    ("cost.currency='../x'", "cost.currency: .*pattern"),
    ("labels.teacher.arguments=&a [*a]", "contain themselves"),
    ("labels.teacher.arguments=" + "[" * 99 + "]" * 99, "nested more than 50 deep"),
)

#: Ends of the campaign's file, and what its refusal says.
FILES = {
    "aliases that double": (
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
        "aliases repeat values until",
    ),
    "a merge of itself": ("cost: &c\n  <<: *c\n", "contain themselves"),
    "a hundred megabytes": ("#" * (100 << 20), "has more than 1,048,576 bytes"),
    "a tab": ("cost:\n\tcurrency: EUR\n", "indent with spaces"),
    "the name on": ("on: 1\n", "whose name YAML reads as true"),
    "thousands of names": ("".join(f"k{n}: 1\n" for n in range(2000)), "and 1,9.. more"),
}

#: Overrides with a secret, all of which are refused for another reason, and where the secret stands.
SHOWN = (
    ("a password of the tracking server", f"tracking.uri=postgres://ann:{SECRET}@db/x"),
    ("a password of the registry", f"tracking.registry_uri=ftp://ann:{SECRET}@db/x"),
    ("a signature of a source", f"snapshot.source=[memory://x?X-Amz-Signature={SECRET}]"),
    ("a SAS of a source", f"snapshot.source=[memory://x?sv=1&sig={SECRET}]"),
    ("a password of the output", f"output=ftp://ann:{SECRET}@h/x"),
    ("a signature of the store", f"labels.store=https://h/x?sig={SECRET}"),
    ("a key of a teacher", f"labels.teacher.arguments={{api_key: {SECRET}, a: .nan}}"),
    ("a nested key of a teacher", f"labels.teacher.arguments={{a: {{secret_access_key: {SECRET}, b: .nan}}}}"),
    ("a header of a teacher", f"labels.teacher.arguments={{a: {{Authorization: Bearer {SECRET}, b: .nan}}}}"),
    ("a key of the wrong type", f"labels.teacher.arguments.api_key=[{SECRET}, .nan]"),
    ("a key in broken YAML", f"labels.teacher.arguments.api_key=[{SECRET}"),
    ("a secret of a student", f"student.model.arguments={{password: {SECRET}}}"),
    ("a secret of a trial", f"sweep={{grid: {{labels.teacher.arguments.api_key: [{SECRET}]}}}}"),
    ("a secret beside a wrong name", f"student.training.deepspeed={{comet: {{api_key: {SECRET}}}, b: .nan}}"),
    ("a text for a number", f"labels.unit_rows='https://u:{SECRET}@h'"),
)
#: Variables with a secret.
VARIABLES = ("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "DATABASE_PASSWORD")


def _shows_none(site: Site, ran: Ran) -> None:
    shown = ran.stdout + ran.stderr
    assert SECRET not in shown, f"it is shown: {shown[-1500:]}"
    for path in site.output.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def _ends_with(text: str) -> Callable[[Site], None]:
    def change(site: Site) -> None:
        with site.config.open("a", encoding="utf-8") as file:
            file.write(text)

    return change


TRIES = (
    *(
        Try(point=7, name=f"--set {override[:60]}", command=(*DRY, "--set", override), says=says)
        for override, says in WRONG
    ),
    *(
        Try(point=7, name=f"a file with {name}", do=_ends_with(text), command=DRY, says=says)
        for name, (text, says) in FILES.items()
    ),
    *(
        Try(point=5, name=f"a refusal of {name}", command=(*DRY, "--set", override), check=_shows_none)
        for name, override in SHOWN
    ),
    *(
        Try(
            point=5,
            name=f"{name} in the environment of a {command[0]}",
            command=command,
            status=0,
            environment=((name, SECRET),),
            check=_shows_none,
        )
        for name in VARIABLES
        for command in (("promote", "{config}"),)
    ),
    Try(
        point=5,
        name="a password of a reference",
        command=(
            "label",
            "{config}",
            "--snapshot",
            f'{{"kind": "SnapshotRef", "url": "s3://a:{SECRET}@b", "fingerprint": "f"}}',
        ),
        says="a reference must not have a password",
        check=_shows_none,
    ),
    Try(
        point=5,
        name="a password of an audited store",
        command=("audit", f"http://ann:{SECRET}@127.0.0.1:9/labels"),
        check=_shows_none,
    ),
    *(
        Try(
            point=5,
            name=f"a {name} of a submission",
            command=("submit", "{config}", "--set", "output=/shared/out", *option),
            says="secret",
            check=_shows_none,
        )
        for name, option in {
            "variable": ("--runtime-env", f'{{"env_vars": {{"HF_TOKEN": "{SECRET}"}}}}'),
            "label": ("--metadata", f"api_key={SECRET}"),
            "argument": (f"--argument=--source=s3://a:{SECRET}@b",),
            "key": ("--set", f"labels.teacher.arguments.api_key={SECRET}"),
        }.items()
    ),
    Try(
        point=5,
        name="an error of a teacher that has a key without its name",
        command=(
            "run",
            "{config}",
            "--dry-run",
            "--set",
            f"labels.teacher={{model: 'tests.labs.hostile.failing:teacher', arguments: {{api_key: {SECRET}}}}}",
            "--set",
            "labels.store=other",
            "--set",
            "student.model={from: module, model: 'ray_distill.testing.models:tiny_text_model'}",
        ),
        says="raised ValueError",
        check=_shows_none,
    ),
)
