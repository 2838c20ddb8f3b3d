"""The cues: words and phrases, in several languages, from which a prompt's task is guessed.

Data only; `inference.selection.tasks` says how it is weighed. Words are whole words in lower case,
parted by spaces. Phrases are looked for anywhere, parted by ``|``: those of more than one word, and
those of scripts that part no words or build them with combining signs.
"""

from __future__ import annotations

WORDS: tuple[tuple[str, float, str], ...] = (
    (
        "translation",
        4.0,
        "translate translates translating translation translations translator"
        " übersetze übersetz übersetzen übersetzt übersetzung übersetzungen übersetzer"
        " traduis traduire traduisez traduction traducteur traduce traduzca traducir traducción"
        " traduci tradurre traduzione traduza traduzir tradução vertaal vertalen vertaling"
        " перевод переведи переведите перевести przetłumacz çevir tercüme terjemahkan dịch"
        " översätt oversett oversæt käännä přelož fordítsd",
    ),
    (
        "summarization",
        4.0,
        "summarize summarise summarizes summarizing summary summaries tldr condense recap gist"
        " fasse zusammenfassen zusammenfassung zusammengefasst kurzfassung"
        " résume résumer résumez synthétise resumir resumen resúmeme sintetiza"
        " riassumi riassumere riassunto resuma resumo samenvatten samenvatting"
        " резюмируй суммируй обобщи streść podsumuj özetle özet ringkas ringkaslah"
        " sammanfatta opsummer",
    ),
    ("summarization", 3.0, "shorten shorter abstract takeaways kürze kürzer raccourcis"),
    (
        "code",
        3.5,
        "python javascript typescript java kotlin rust golang c++ c# php ruby perl haskell scala sql mysql"
        " postgresql sqlite regex bash powershell html css json yaml xml dockerfile docker kubernetes git"
        " numpy pandas pytorch tensorflow django flask react nodejs api jquery makefile cmake"
        " refactor debug debugging compile compiler segfault traceback stacktrace nullpointerexception"
        " typeerror valueerror keyerror syntaxerror unittest pytest codebase async array",
    ),
    (
        "code",
        2.0,
        "code coding program function functions script algorithm bug loop recursion recursive"
        " pointer programming implement snippet query"
        " funktion programm skript quelltext quellcode programmiere fonction programme"
        " función programa código codice funzione função"
        " функция функцию код скрипт программу fonksiyon",
    ),
    ("creative_writing", 2.5, "dichte dichten reime rhyme rhymes rima rimas"),
    ("conversation", 3.0, "hi hello hey hallo salut hola bonjour bonsoir ciao olá oi привет merhaba"),
    ("conversation", 2.0, "thanks thank danke merci gracias grazie obrigado спасибо servus moin"),
    ("conversation", 1.5, "i'm feeling feel bored lonely sad happy"),
)

PHRASES: tuple[tuple[str, float, str], ...] = (
    ("translation", 4.0, "翻译|翻譯|译成|譯成|译为|翻訳|번역|अनुवाद|ترجم|แปล|tłumacz|dịch sang"),
    (
        "translation",
        4.0,
        "how do you say|how do i say|wie sagt man|comment dit-on|comment on dit|cómo se dice"
        "|como se dice|come si dice|como se diz|怎么说|用英语怎么|как сказать|как будет по",
    ),
    ("translation", 2.5, "成英文|成中文|成英语|英語に|日本語に|用英语|영어로|한국어로"),
    (
        "summarization",
        4.0,
        "tl;dr|sum up|key points|main points|main idea|key takeaways|in a nutshell|in one sentence"
        "|in two sentences|in three sentences|in a few sentences|boil down"
        "|总结|總結|摘要|概括|概述|要約|まとめ|요약|सारांश|لخص|un résumé|resume el |resume este|resume esta"
        "|resume la |resume lo |vat samen|tóm tắt|в двух словах|краткое содержание|кратко перескажи"
        "|die wichtigsten punkte|les points clés|puntos principales",
    ),
    ("code", 3.5, "代码|代碼|函数|函數|编程|程序|脚本|算法|コード|関数|プログラム|코드|함수"),
    (
        "code",
        3.5,
        "unit test|regular expression|data structure|time complexity|stack trace|error message"
        "|binary search|linked list|command line|shell command|pull request|null pointer|segmentation fault",
    ),
    (
        "creative_writing",
        3.0,
        "once upon a time|es war einmal|il était une fois|érase una vez|había una vez|c'era una volta"
        "|era uma vez|жили-были|很久以前|从前有|昔々|むかしむかし|옛날 옛적"
        "|in the style of shakespeare|rhyming",
    ),
    (
        "text_generation",
        3.0,
        "continue the text|continue this text|continue the following|continue writing"
        "|complete the sentence|complete this sentence|complete the following|finish the sentence"
        "|finish this|fill in the blank|setze den text fort|setze fort|vervollständige|ergänze"
        "|continue le texte|complète|continúa el texto|completa la frase|续写|續寫|продолжи",
    ),
    (
        "question_answering",
        2.0,
        "answer the question|answer the following|based on the context|based on the passage"
        "|according to the|question:|frage:|pregunta:|beantworte|réponds à la question"
        "|responde a la pregunta|回答",
    ),
    ("question_answering", 2.0, "erkläre|explique|explica|spiega|解释|объясни|説明"),
    (
        "conversation",
        3.0,
        "good morning|good evening|good night|guten morgen|guten tag|guten abend|buenos días"
        "|buenas |你好|您好|谢谢|早上好|こんにちは|おはよう|ありがとう|안녕"
        "|how are you|how's it going|what's up"
        "|wie geht|ça va|comment vas|qué tal|cómo estás|come stai|tudo bem|как дела"
        "|\nassistant:|\nai:|\nbot:|let's chat|let's talk|talk to me|pretend you are|role-play|roleplay",
    ),
)

WRITING_VERBS = (
    "write compose create generate draft tell invent make craft give pen imagine come"
    " schreib schreibe schreiben verfasse dichte erzähl erzähle erfinde erstelle entwirf formuliere"
    " écris écrire écrivez rédige raconte compose invente crée imagine"
    " escribe escribir escribeme escríbeme redacta cuéntame cuenta inventa crea componga compón"
    " scrivi racconta componi escreva conte crie schrijf vertel"
    " напиши сочини придумай расскажи составь napisz yaz skriv"
)
WRITING_VERB_PHRASES = "写|寫|编一|讲一|讲个|創作|创作|書いて|作って|써|지어"

CREATIVE_NOUNS = (
    "story stories poem poems poetry haiku sonnet limerick ballad lyrics song rap novel fable tale"
    " fairytale screenplay monologue fanfiction verse verses joke villain protagonist character sci-fi"
    " fiction riddle scene dialogue plot"
    " geschichte gedicht gedichte märchen lied ballade roman kurzgeschichte reim fabel witz erzählung"
    " poème histoire conte chanson nouvelle blague cuento poema historia canción relato fábula novela"
    " chiste storia poesia canzone racconto favola história canção conto verhaal"
    " стих стихотворение сказку рассказ историю песню wiersz opowiadanie şiir hikaye dikt"
)
CREATIVE_NOUN_PHRASES = "诗|詩|故事|小说|小說|童话|歌词|物語|俳句|小説|시를|이야기|소설"

PLAIN_NOUNS = (
    "email e-mail letter essay article blog blogpost post description paragraph report speech headline"
    " headlines slogan tagline advertisement ad announcement invitation newsletter biography bio review"
    " caption tweet outline memo proposal text sentences introduction"
    " brief aufsatz artikel beschreibung bericht rede absatz bewerbung einladung anzeige werbetext"
    " lettre dissertation paragraphe rapport discours annonce courriel carta correo ensayo artículo"
    " descripción párrafo informe discurso anuncio lettera saggio articolo descrizione"
    " письмо статью эссе текст описание"
)
PLAIN_NOUN_PHRASES = "邮件|郵件|文章|作文|一封信|报告|演讲|广告|メール|手紙|記事|이메일"

QUESTION_STARTS = (
    "explain define name list nenne nomme nombra elenca what what's who who's whom whose when where"
    " where's why which how is are was were does do did has have can could will would should wer wen"
    " wem wann wo warum wieso weshalb wie welche welcher welches welchen ist sind hat qui que quoi"
    " quand où pourquoi comment combien quel quelle quels quelles qu'est-ce est-ce qué quién quiénes"
    " cuándo dónde cómo cuál cuáles cuánto cuánta cuántos cuántas chi cosa quando dove perché come"
    " quale quanti quanto qual quem onde como quantos wat waar waarom hoe что кто когда где почему"
    " как какой какая какие сколько co kto kiedy gdzie"
)
QUESTION_PHRASES = "什么|什麼|谁|哪|为什么|怎么|多少|吗|何です|ですか|なぜ|무엇|누구|입니까|por qué"

LISTENER_PHRASES = (
    "are you |do you like|do you think|do you feel|do you want|do you know me|do you remember"
    "|would you like|your name|your favorite|your favourite|your day|what do you think|who are you"
    "|can you help me|can we talk|tell me about yourself|bist du|magst du|wer bist du|dein name"
    "|lieblings|es-tu|aimes-tu|eres tú|quién eres|te gusta|should i |your opinion|your weekend|dein tag"
    "|dein wochenende|tu día|ta journée|sei tu|chi sei|你是谁|你叫什么|你喜欢"
)

REQUESTS = "can you|could you|will you|would you"

LANGUAGES = (
    "english german french spanish italian portuguese chinese japanese korean russian arabic hindi dutch"
    " polish turkish swedish ukrainian vietnamese greek latin mandarin"
    " englisch englische deutsch deutsche französisch französische spanisch spanische italienisch"
    " italienische chinesisch chinesische japanisch japanische russisch russische"
    " anglais français allemand espagnol italien chinois inglés español francés alemán italiano"
    " inglese francese tedesco spagnolo inglês francês alemão espanhol engels nederlands duits frans"
    " английский русский немецкий"
)
INTO_WORDS = "into to ins al naar на"
IN_WORDS = "in auf en em het"
