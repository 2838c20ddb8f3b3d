"""What a prompt asks for."""
# ruff: noqa: RUF001 - Chinese prompts have Chinese punctuation

from __future__ import annotations

import pytest

from inference.generation import Message
from inference.selection.tasks import Task, classify

LABELLED = """
conversation | Hi there!
conversation | Hello, how are you doing today?
conversation | I had a terrible day at work and just need someone to listen.
conversation | Do you like pizza?
conversation | What's your name?
conversation | thanks, that was really helpful
conversation | Good morning! Any plans for the weekend?
conversation | I'm bored, entertain me
conversation | Hallo, wie geht es dir?
conversation | Bonjour, ça va ?
conversation | Hola, ¿qué tal?
conversation | 你好，今天过得怎么样？
conversation | lol that's funny
conversation | Can we talk about something that bothers me?
conversation | I think my cat hates me
creative_writing | Write a short story about a dragon who is afraid of fire.
creative_writing | Write me a haiku about autumn leaves
creative_writing | Compose a limerick about a programmer from Kent
creative_writing | Tell me a bedtime story about a brave mouse
creative_writing | Write song lyrics about heartbreak in the style of country music
creative_writing | Come up with a villain for my fantasy novel
creative_writing | Schreibe ein Gedicht über den Herbst
creative_writing | Erzähl mir ein Märchen von einem faulen König
creative_writing | Écris un poème sur la mer
creative_writing | Escribe un cuento sobre un robot que aprende a amar
creative_writing | 写一首关于月亮的诗
creative_writing | 请写一个关于狐狸的童话故事
creative_writing | Can you write a rap about doing the dishes?
creative_writing | Write the opening scene of a thriller set in Lisbon
creative_writing | Tell me a joke about penguins
code | Write a Python function that reverses a linked list
code | Why does this code throw a NullPointerException?
code | def add(a, b):\\n    return a - b\\n# fix the bug
code | How do I center a div in CSS?
code | Convert this for loop to a list comprehension: for x in xs: out.append(x * 2)
code | Write a SQL query that returns the ten best customers by revenue
code | Explain what this regex does: ^[a-z]+$
code | Implement quicksort in Rust
code | SELECT name FROM users WHERE id = 3; make this faster
code | Schreibe ein Python-Skript, das alle Dateien in einem Ordner umbenennt
code | Écris une fonction JavaScript qui trie un tableau
code | Escribe una función en Java que calcule factoriales
code | 用Python写一个冒泡排序函数
code | What is the difference between a mutex and a semaphore in C++?
code | Refactor this class to use dependency injection
code | How can I undo my last git commit?
summarization | Summarize the following article in three sentences: The city council met on Monday to discuss
summarization | Give me a summary of this text: Photosynthesis is the process by which plants
summarization | TL;DR: I have been working at this company for six years and
summarization | What are the key points of this report? Revenue rose by four percent
summarization | Please condense this paragraph into one sentence.
summarization | Can you summarise this email for me? Dear all, as you know
summarization | Fasse den folgenden Text zusammen: Die Bundesregierung hat am Mittwoch
summarization | Erstelle eine Zusammenfassung des folgenden Artikels: Die Forscher
summarization | Fais un résumé de ce texte : La Révolution française
summarization | Résume cet article en deux phrases.
summarization | Resume el siguiente texto: La economía española creció
summarization | Haz un resumen de este artículo
summarization | 请总结以下文章：人工智能正在改变世界
summarization | 次の文章を要約してください
summarization | Shorten this text to 50 words: The quick brown fox
translation | Translate to French: The weather is nice today.
translation | How do you say 'good night' in Japanese?
translation | Translate the following sentence into German: I would like a coffee.
translation | What is the Spanish translation of "library"?
translation | Übersetze ins Englische: Ich habe Hunger.
translation | Kannst du diesen Satz ins Französische übersetzen?
translation | Traduis en anglais : Je suis fatigué.
translation | Traduce al inglés: Me gusta leer libros.
translation | 把下面的句子翻译成英文：我喜欢喝茶
translation | 请翻译：Good morning
translation | 次の文を英語に翻訳してください
translation | Переведи на английский: Я тебя люблю
translation | Traduci in inglese: Dove si trova la stazione?
translation | Can you put this into Italian for me: see you tomorrow
translation | Wie sagt man 'thank you' auf Deutsch?
question_answering | What is the capital of Australia?
question_answering | Who wrote Pride and Prejudice?
question_answering | When did the Second World War end?
question_answering | How many moons does Jupiter have?
question_answering | Why is the sky blue?
question_answering | Is a tomato a fruit or a vegetable?
question_answering | Was ist die Hauptstadt von Kanada?
question_answering | Wer hat die Relativitätstheorie entwickelt?
question_answering | Quelle est la plus haute montagne du monde ?
question_answering | ¿Cuál es el río más largo del mundo?
question_answering | 法国的首都是什么？
question_answering | 世界上最高的山是哪座？
question_answering | Context: The bridge was built in 1932. Question: When was the bridge built?
question_answering | Explain how vaccines work
question_answering | Which planet is closest to the sun?
question_answering | Сколько планет в Солнечной системе?
text_generation | Continue the text: The old lighthouse keeper climbed the stairs
text_generation | Write an email to my landlord about the broken heating
text_generation | Complete the sentence: The best way to learn is
text_generation | Write a product description for a stainless steel water bottle
text_generation | Draft a cover letter for a nursing position
text_generation | Schreibe eine E-Mail an meinen Vermieter
text_generation | Write a blog post about urban gardening
text_generation | Rédige une lettre de motivation pour un stage
text_generation | Escribe una carta formal de queja
text_generation | 写一封邮件给我的老板请假
conversation | What should I cook tonight? I only have eggs and rice.
conversation | My girlfriend broke up with me yesterday
conversation | Tell me something about yourself
conversation | Wie war dein Tag?
conversation | Nice to meet you!
conversation | I just got promoted!!
conversation | ok, and then what happened?
conversation | Ciao, come stai?
creative_writing | Imagine a world where nobody sleeps and describe one day there as a short tale
creative_writing | I need a poem for my grandmother's 80th birthday
creative_writing | Write a dialogue between the sun and the moon
creative_writing | Once upon a time in a forest far away,
creative_writing | Inventa una historia de piratas
creative_writing | Dichte vier Zeilen über Kaffee
creative_writing | Raconte-moi une histoire drôle de chat
creative_writing | 给我讲一个鬼故事
code | What's wrong with my for loop? for i in range(10) print(i)
code | Give me a bash one-liner that counts lines in all .txt files
code | How do I parse JSON in Go?
code | Write unit tests for the following function
code | Add type hints to this: def f(x): return x+1
code | Mein Programm stürzt mit einem Segmentation Fault ab, warum?
code | ¿Cómo se declara un array en C?
code | 如何在JavaScript中遍历对象？
summarization | Give me the gist of this article: Scientists have found
summarization | Sum up the plot of Hamlet
summarization | Write an abstract for the paper below
summarization | What is this text about in a nutshell? The committee
summarization | Kannst du mir das kurz zusammenfassen?
summarization | Riassumi questo testo in poche righe
summarization | Summarise in bullet points: Q3 earnings were
summarization | 用一句话概括这段话
translation | What does "Schadenfreude" mean in English?
translation | Say "I love you" in Korean
translation | English to Spanish: Where is the bathroom?
translation | Please render this paragraph in Portuguese
translation | Bitte auf Englisch: Ich komme morgen später
translation | Comment dit-on "merci" en allemand ?
translation | 这句话用英语怎么说？
translation | Vertaal naar het Engels: Ik heb honger
question_answering | how tall is mount everest
question_answering | Name the largest ocean on earth
question_answering | What are the symptoms of the flu?
question_answering | Can dogs eat chocolate?
question_answering | Wie viele Einwohner hat Berlin?
question_answering | ¿Quién pintó la Mona Lisa?
question_answering | Pourquoi les feuilles tombent-elles en automne ?
question_answering | 水的沸点是多少度？
text_generation | Generate a paragraph about renewable energy
text_generation | Write a LinkedIn post announcing our new product
text_generation | Finish this: All happy families are alike;
text_generation | Write a 500-word essay on climate change
text_generation | Verfasse eine Einladung zur Weihnachtsfeier
text_generation | Redacta un anuncio para vender mi coche
text_generation | Write a tagline for a coffee shop
"""

PROMPTS = [
    (Task(label.strip()), text.strip().replace("\\n", "\n"))
    for label, _, text in (line.partition("|") for line in LABELLED.strip().splitlines())
]


def test_labelled_prompts() -> None:
    """At least 85 % of a labelled set in several languages is recognized."""
    wrong = [
        f"{found.value} instead of {task.value}: {text}"
        for task, text in PROMPTS
        if (found := classify((Message("user", text),))) is not task
    ]
    assert len(wrong) <= 0.15 * len(PROMPTS), "\n".join(wrong)


@pytest.mark.parametrize("task", sorted({task for task, _ in PROMPTS}))
def test_no_task_is_overlooked(task: Task) -> None:
    """Of each task at least two thirds are recognized."""
    own = [text for label, text in PROMPTS if label is task]
    right = sum(classify((Message("user", text),)) is task for text in own)
    assert right >= len(own) * 2 / 3


@pytest.mark.parametrize("text", ["", " ", "The sea was calm that", "In 1923 the company", "\x00\ud800" * 20])
def test_defaults(text: str) -> None:
    """Without a cue a raw prompt is text to be continued and a chat is conversation."""
    assert classify(text) is Task.TEXT_GENERATION
    assert classify((Message("user", text),)) is Task.CONVERSATION


def test_empty_chat_is_conversation() -> None:
    """A chat in which nobody has said anything is conversation."""
    assert classify(()) is Task.CONVERSATION


def test_last_user_message_decides() -> None:
    """What was asked earlier in a chat, and what the assistant said, does not count."""
    chat = (
        Message("user", "Translate to French: good morning"),
        Message("assistant", "Bonjour"),
        Message("user", "Write a Python function that adds two numbers"),
        Message("assistant", "Here is a summary of my thoughts."),
    )
    assert classify(chat) is Task.CODE


def test_system_message_counts_where_the_user_gives_no_cue() -> None:
    """A system message that sets the task is believed, below what the user says."""
    rule = Message("system", "You are a translator. Translate everything to German.")
    assert classify((rule, Message("user", "the weather is nice"))) is Task.TRANSLATION
    assert classify((rule, Message("user", "Fix this: ```int x = 1```"))) is Task.CODE


def test_pasted_material_is_not_the_instruction() -> None:
    """Words in the middle of a long prompt belong to what it is about."""
    material = "The poet would translate a story and write a summary of it in Python. " * 20
    assert (
        classify(f"Answer in one word. {'x ' * 150}{material}{'y ' * 150}. Is it?") is Task.QUESTION_ANSWERING
    )


def test_same_prompt_same_task() -> None:
    """Classification depends on nothing but the text."""
    texts = [text for _, text in PROMPTS]
    assert [classify(text) for text in texts] == [classify(text) for text in texts]


def test_task_is_a_string() -> None:
    """A task can be written to JSON and compared with a registry's use case as it is."""
    task: str = classify("Translate to French: cat")
    assert task == "translation"
